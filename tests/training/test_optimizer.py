"""The learning rate value by value, the optimizer's groups, and moments that come from a file."""

import math

import pytest
import torch

from ssd import build_ssd
from training.network import freeze_base
from training.optimizer import build_optimizer, learning_rate, load_moments


def paper(iteration, **changes):
    settings = {"base_lr": 1e-3, "max_iter": 120_000, "steps": (80_000, 100_000), "warmup": 500}
    return learning_rate(iteration, **{**settings, **changes})


@pytest.mark.parametrize(("iteration", "changes", "rate"), [
    (0, {}, 1e-3 / 500), (249, {}, 5e-4), (499, {}, 1e-3), (79_999, {}, 1e-3), (80_000, {}, 1e-4),
    (99_999, {}, 1e-4), (100_000, {}, 1e-5), (0, {"warmup": 0}, 1e-3), (90_000, {"gamma": 0.5}, 5e-4),
    (100, {"steps": (50,)}, 1e-4 * 101 / 500),
])  # fmt: skip
def test_the_rate_warms_up_and_falls_in_steps(iteration, changes, rate):
    """By default as in the paper."""
    assert paper(iteration, **changes) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 100])
def test_cosine(warmup):
    rates = [paper(i, schedule="cosine", max_iter=1100, warmup=warmup) for i in range(1101)]
    assert rates.index(max(rates)) == max(warmup - 1, 0)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[(warmup + 1100) // 2] == pytest.approx(5e-4)
    assert rates[warmup + (1100 - warmup) // 4] == pytest.approx(1e-3 * (1 + math.sqrt(0.5)) / 2, rel=1e-6)
    assert rates[1100] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("caffe_bias", [False, True])
def test_each_parameter_is_in_one_group_with_its_decay_and_rate(name, caffe_bias):
    net = build_ssd("train", width=0.05, batch_norm=True)
    freeze_base(net, 10)
    optimizer = build_optimizer(net, name, 0.3, torch.device("cpu"), weight_decay=0.1, caffe_bias=caffe_bias)
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(group_of)
    for key, parameter in net.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in group_of
            continue
        group, bias, vector = group_of[id(parameter)], key.endswith(".bias"), parameter.dim() == 1
        undecayed = bias and (caffe_bias or name == "adamw") or (vector and not bias and name == "adamw")
        assert (group["weight_decay"], group["lr_factor"]) == (0 if undecayed else 0.1, 1 + (bias and caffe_bias))


def stepped(optimizer):
    """The optimizer after one step."""
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def parameter(layout=torch.channels_last):
    return [torch.nn.Parameter(torch.ones(8, 4, 3, 3).to(memory_format=layout))]


def test_moments_get_the_layout_of_their_parameter():
    """Fused optimizers need that; a run that was saved elsewhere may have another one."""
    saved, own = stepped(torch.optim.AdamW(parameter(torch.contiguous_format))).state_dict(), parameter()
    assert saved["state"][0]["exp_avg"].stride() != own[0].stride()
    optimizer = torch.optim.AdamW(own)
    load_moments(optimizer, saved)
    assert optimizer.state[own[0]]["exp_avg"].stride() == own[0].stride()


def test_settings_stay_the_optimizers_own():
    state = stepped(torch.optim.AdamW(parameter())).state_dict()
    state["param_groups"][0] |= {"amsgrad": True, "capturable": True, "betas": "none", "lr": "fast"}
    optimizer = torch.optim.AdamW(parameter(), lr=0.5)
    load_moments(optimizer, state)
    assert optimizer.param_groups[0]["lr"] == 0.5
    stepped(optimizer)
