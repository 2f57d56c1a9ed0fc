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
    *((iteration, {"schedule": "cosine", "max_iter": 1100, "warmup": 100}, rate) for iteration, rate in (
        (49, 5e-4), (99, 1e-3), (100, 1e-3), (350, 1e-3 * (1 + math.sqrt(0.5)) / 2), (600, 5e-4), (1100, 0), (1101, 0),
    )),
    (0, {"schedule": "cosine", "max_iter": 1100, "warmup": 0}, 1e-3),
])  # fmt: skip
def test_the_rate_warms_up_and_falls(iteration, changes, rate):
    """In steps, by default as in the paper, or as a cosine."""
    assert paper(iteration, **changes) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("caffe_bias", [False, True])
def test_each_parameter_is_in_one_group_with_its_decay_and_rate(name, caffe_bias):
    net = build_ssd("train", width=0.05, batch_norm=True)
    freeze_base(net, 10)
    optimizer = build_optimizer(net, name, 0.3, weight_decay=0.1, caffe_bias=caffe_bias)
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(group_of)
    for key, parameter in net.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in group_of
            continue
        group, bias, vector = group_of[id(parameter)], key.endswith(".bias"), parameter.dim() == 1
        undecayed = bias and (caffe_bias or name == "adamw") or (vector and not bias and name == "adamw")
        assert (group["weight_decay"], group["lr_factor"]) == (0 if undecayed else 0.1, 1 + (bias and caffe_bias))


def test_moments_get_the_layout_of_their_parameter_and_settings_stay():
    """Fused optimizers need that layout; a run that was saved elsewhere may have another one."""
    elsewhere = torch.nn.Parameter(torch.ones(8, 4, 3, 3))
    own = torch.nn.Parameter(elsewhere.detach().to(memory_format=torch.channels_last))
    elsewhere.grad, own.grad = elsewhere.detach(), own.detach()
    saved, optimizer = torch.optim.AdamW([elsewhere]), torch.optim.AdamW([own], lr=0.5)
    saved.step()
    state = saved.state_dict()
    state["param_groups"][0] |= {"amsgrad": True, "capturable": True, "betas": "none", "lr": "fast"}
    load_moments(optimizer, state)
    assert optimizer.state[own]["exp_avg"].stride() == own.stride() != state["state"][0]["exp_avg"].stride()
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.step()
