"""The learning rate, value by value."""

import math

import pytest
import torch

from training.schedule import learning_rate


def paper(iteration, **changes):
    settings = {"base_lr": 1e-3, "max_iter": 120_000, "steps": (80_000, 100_000), "warmup": 500}
    return learning_rate(iteration, **{**settings, **changes})


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 1e-3 / 500),
        (249, 5e-4),
        (499, 1e-3),
        (500, 1e-3),
        (79_999, 1e-3),
        (80_000, 1e-4),
        (99_999, 1e-4),
        (100_000, 1e-5),
        (119_999, 1e-5),
    ],
)
def test_the_papers_steps_with_warm_up(iteration, rate):
    assert paper(iteration) == pytest.approx(rate, rel=1e-12)


def test_without_warm_up():
    assert paper(0, warmup=0) == 1e-3
    assert paper(0, warmup=1) == 1e-3


def test_gamma():
    assert paper(90_000, gamma=0.5) == pytest.approx(5e-4)
    assert paper(110_000, gamma=0.5) == pytest.approx(2.5e-4)


def test_warm_up_and_steps_multiply():
    assert paper(100, steps=(50,)) == pytest.approx(1e-4 * 101 / 500)


@pytest.mark.parametrize("warmup", [0, 100])
def test_cosine(warmup):
    rates = [paper(i, schedule="cosine", max_iter=1100, warmup=warmup) for i in range(1101)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) == max(warmup - 1, 0)
    middle = (warmup + 1100) // 2
    assert rates[middle] == pytest.approx(5e-4)
    quarter = warmup + (1100 - warmup) // 4
    assert rates[quarter] == pytest.approx(1e-3 * (1 + math.sqrt(0.5)) / 2, rel=1e-6)
    assert rates[1100] == pytest.approx(0, abs=1e-12)
    falling = rates[warmup:]
    assert all(a >= b for a, b in zip(falling, falling[1:], strict=False))


@pytest.mark.parametrize("length", [10, 1000])
def test_one_cycle_is_torchs(length):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.02, total_steps=length, div_factor=25, final_div_factor=1e4
    )
    expected = []
    for _ in range(length):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < length:
            peer.step()
    ours = [paper(i, schedule="onecycle", base_lr=0.02, max_iter=length) for i in range(length)]
    # Torch turns at iteration 0.3 * length - 1, ours at 30 % of the way from the first to the last.
    assert ours == pytest.approx(expected, abs=0.02 * 12 / length)
    assert ours[0] == pytest.approx(expected[0])
    assert ours[-1] == pytest.approx(expected[-1])


def test_constant():
    assert {paper(i, schedule="constant", warmup=0) for i in (0, 90_000, 119_999)} == {1e-3}


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="step, cosine, onecycle or constant"):
        paper(0, schedule="linear")
