"""The learning rate value by value, the optimizer's groups, and moments that come from a file."""

import math

import pytest
import torch

from ssd import build_ssd
from training.network import freeze_base
from training.optimizer import build_optimizer, learning_rate, load_moments

CPU = torch.device("cpu")


def paper(iteration, **changes):
    settings = {"base_lr": 1e-3, "max_iter": 120_000, "steps": (80_000, 100_000), "warmup": 500}
    return learning_rate(iteration, **{**settings, **changes})


class TestLearningRate:
    @pytest.mark.parametrize(
        ("iteration", "rate"),
        [(0, 1e-3 / 500), (249, 5e-4), (499, 1e-3), (79_999, 1e-3), (80_000, 1e-4), (99_999, 1e-4), (100_000, 1e-5)],
    )
    def test_steps_of_the_paper_with_warm_up(self, iteration, rate):
        assert paper(iteration) == pytest.approx(rate, rel=1e-12)

    def test_settings(self):
        assert paper(0, warmup=0) == 1e-3
        assert paper(90_000, gamma=0.5) == pytest.approx(5e-4)
        assert paper(100, steps=(50,)) == pytest.approx(1e-4 * 101 / 500)
        assert {paper(i, schedule="constant", warmup=0) for i in (0, 90_000, 119_999)} == {1e-3}

    @pytest.mark.parametrize("warmup", [0, 100])
    def test_cosine(self, warmup):
        rates = [paper(i, schedule="cosine", max_iter=1100, warmup=warmup) for i in range(1101)]
        assert rates.index(max(rates)) == max(warmup - 1, 0)
        assert max(rates) == pytest.approx(1e-3)
        assert rates[(warmup + 1100) // 2] == pytest.approx(5e-4)
        assert rates[warmup + (1100 - warmup) // 4] == pytest.approx(1e-3 * (1 + math.sqrt(0.5)) / 2, rel=1e-6)
        assert rates[1100] == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("length", [10, 1000])
    def test_one_cycle_equals_torchs(self, length):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        peer = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, length, div_factor=25, final_div_factor=1e4)
        expected = []
        for _ in range(length):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(expected) < length:
                peer.step()
        ours = [paper(i, schedule="onecycle", base_lr=0.02, max_iter=length) for i in range(length)]
        # torch turns at iteration 0.3 * length - 1, ours after 30 % of the way from the first to the last.
        assert ours == pytest.approx(expected, abs=0.02 * 12 / length)
        assert (ours[0], ours[-1]) == (pytest.approx(expected[0]), pytest.approx(expected[-1]))


class TestGroups:
    @pytest.mark.parametrize("name", ["sgd", "adamw"])
    @pytest.mark.parametrize("caffe_bias", [False, True])
    def test_each_parameter_is_in_one_group_with_its_decay_and_rate(self, name, caffe_bias):
        net = build_ssd("train", width=0.05, batch_norm=True)
        freeze_base(net, 10)
        groups = build_optimizer(net, name, 0.3, CPU, weight_decay=0.1, caffe_bias=caffe_bias).param_groups
        group_of = {id(parameter): group for group in groups for parameter in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(group_of)
        for key, parameter in net.named_parameters():
            if not parameter.requires_grad:
                assert id(parameter) not in group_of
                continue
            group, bias, vector = group_of[id(parameter)], key.endswith(".bias"), parameter.dim() == 1
            undecayed = bias and (caffe_bias or name == "adamw") or (vector and not bias and name == "adamw")
            assert (group["weight_decay"], group["lr_factor"]) == (0 if undecayed else 0.1, 1 + (bias and caffe_bias))


def stepped(optimizer):
    """The optimizer after one step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def parameters():
    torch.manual_seed(0)
    plain = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    return [plain, torch.nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))]


class TestMoments:
    @pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
    def test_the_next_step_is_the_same(self, make):
        ours, other = parameters(), parameters()
        first, second = stepped(make(ours)), make(other)
        load_moments(second, first.state_dict())
        for parameter, value in zip(other, ours, strict=True):
            parameter.data.copy_(value.data)
        stepped(first), stepped(second)
        assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))

    def test_moments_get_the_layout_of_their_parameter(self):
        """Fused optimizers need that; a run that was saved elsewhere may have another one."""
        saved = stepped(torch.optim.AdamW([torch.nn.Parameter(p.data.contiguous()) for p in parameters()]))
        own = parameters()
        optimizer = torch.optim.AdamW(own)
        load_moments(optimizer, saved.state_dict())
        assert optimizer.state[own[1]]["exp_avg"].stride() == own[1].stride() != own[1].contiguous().stride()

    def test_settings_stay_the_optimizers_own(self):
        state = stepped(torch.optim.AdamW(parameters())).state_dict()
        state["param_groups"][0] |= {"amsgrad": True, "capturable": True, "betas": "none", "lr": "fast"}
        optimizer = torch.optim.AdamW(parameters(), lr=0.5)
        load_moments(optimizer, state)
        assert optimizer.param_groups[0]["lr"] == 0.5
        stepped(optimizer)

    @pytest.mark.parametrize(
        "change", [{"step": "once"}, {"exp_avg": None}, {"exp_avg": torch.zeros(3)}, {"momentum_buffer": None}]
    )
    def test_moments_of_something_else_are_refused(self, change):
        state = stepped(torch.optim.AdamW(parameters())).state_dict()
        state["state"][0] |= change
        with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
            load_moments(torch.optim.AdamW(parameters()), state)
