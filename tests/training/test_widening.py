"""A wider network starts as the narrower one that it is made from, and its copies part."""

import numpy as np
import pytest
import torch

from data import voc
from ssd import SSD
from training.network import load_fitting
from training.widening import widened, widening

NARROW = 0.25  # 16 channels at least: narrower networks aren't widened by one factor throughout


def make_net(width, classes=4, batch_norm=False, seed=0):
    torch.manual_seed(seed)
    net = SSD("train", voc, classes, width, batch_norm)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some training
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean)
    return net.eval()


def pictures(count=2):
    return torch.from_numpy(np.random.RandomState(0).uniform(-120, 130, (count, 3, 300, 300))).float()


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("factor", [2, 3])
@torch.no_grad()
def test_it_computes_the_same(factor, batch_norm):
    narrow, wide = make_net(NARROW, batch_norm=batch_norm), make_net(NARROW * factor, batch_norm=batch_norm, seed=1)
    wide.load_state_dict(widened(narrow.state_dict(), wide.state_dict()))
    x = pictures()
    for expected, found in zip(narrow.raw(x), wide.raw(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_copies_get_gradients_of_their_own():
    wide = make_net(2 * NARROW)
    wide.load_state_dict(widened(make_net(NARROW).state_dict(), wide.state_dict()))
    loc, conf = wide.raw(pictures(1))
    (loc.square().mean() + conf.square().mean()).backward()
    for name, parameter in wide.named_parameters():
        if name.startswith("vgg.") and name.endswith(".weight"):
            first, second = parameter.grad.chunk(2)
            assert (first - second).abs().max() > 0.1 * first.abs().max(), name


def test_heads_for_other_classes_are_left_out():
    """Four times as many classes are no reason to have each of them four times."""
    state, wide = make_net(NARROW, classes=4).state_dict(), make_net(2 * NARROW, classes=8)
    found = widened(state, wide.state_dict())
    assert not any(key.startswith("conf.") for key in found)
    assert {key for key in state if not key.startswith("conf.")} == set(found)


@pytest.mark.parametrize(
    ("narrow", "wide", "factor"),
    [(0.25, 0.5, 2), (0.25, 1, 4), (0.25, 0.25, None), (0.25, 0.4, None), (0.5, 0.25, None)],
)
def test_the_factor(narrow, wide, factor):
    assert widening(make_net(narrow).state_dict(), make_net(wide).state_dict()) == factor


@pytest.mark.parametrize(
    "foreign", [{}, {"fc.weight": torch.zeros(3)}, {"vgg.0.weight": torch.zeros(3)}, {"vgg.0.bias": torch.zeros(0)}]
)
def test_another_network_is_not_widened(foreign):
    assert widening(foreign, make_net(NARROW).state_dict()) is None


def test_finetuning_says_so(tmp_path):
    path, said = tmp_path / "narrow.pth", []
    torch.save(make_net(NARROW).state_dict(), path)
    net = make_net(2 * NARROW, seed=1)
    load_fitting(net, str(path), said.append)
    assert said[0] == "widened by 2: the network starts with as many copies of each channel, and computes what it did"
    assert said[1].endswith("initialised anew: nothing")
