"""The same network on a smaller input: its priors."""

import pytest
import torch

from data import voc, voc512
from layers.functions import PriorBox
from ssd import build_ssd
from training.low_resolution import priors_at


@pytest.fixture(scope="module")
def net():
    return build_ssd("train", 300, 21, width=0.05)


def test_at_its_own_size_they_are_the_networks(net):
    assert torch.equal(priors_at(net, 300), net.priors)


@pytest.mark.parametrize("size", [64, 100, 150, 176, 225, 256])
def test_there_is_one_for_each_prediction(net, size):
    with torch.no_grad():
        loc, conf = net.raw(torch.zeros(1, 3, size, size))
    assert priors_at(net, size).shape == (loc.shape[1], 4)
    assert conf.shape[1] == loc.shape[1]


def test_at_half_size_the_boxes_are_the_same_fractions(net):
    """The first cell of each map that remains has the shapes that it has at full size."""
    half, sides, places = priors_at(net, 150), [], [0]
    with torch.no_grad():
        sides = [source.shape[-1] for source in net.features(torch.zeros(1, 3, 150, 150))]
    full_places = [0]
    for side, full_side, boxes in zip(sides, voc.feature_maps, voc.boxes_per_cell, strict=False):
        cell = half[places[-1] : places[-1] + boxes, 2:]
        torch.testing.assert_close(cell, net.priors[full_places[-1] : full_places[-1] + boxes, 2:], atol=1e-6, rtol=0)
        places.append(places[-1] + side * side * boxes)
        full_places.append(full_places[-1] + full_side * full_side * boxes)
    assert places[-1] == len(half)


def test_centres_fill_the_picture_evenly(net):
    side = 19  # of conv4_3 at 150 pixels
    centres = priors_at(net, 150)[: side * side * 4 : 4, :2].view(side, side, 2)
    expected = (torch.arange(side) + 0.5) / side
    torch.testing.assert_close(centres[0, :, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(centres[:, 0, 1], expected, atol=1e-6, rtol=0)


def test_the_network_is_left_as_it_was(net):
    net.train()
    priors_at(net, 150)
    assert net.training
    assert torch.equal(net.priors, PriorBox(voc).forward())


def test_ssd512_at_half_size():
    net = build_ssd("train", 512, 3, width=0.05)
    with torch.no_grad():
        loc, _ = net.raw(torch.zeros(1, 3, 256, 256))
    priors = priors_at(net, 256)
    assert len(priors) == loc.shape[1]
    torch.testing.assert_close(priors[:4, 2:], PriorBox(voc512).forward()[:4, 2:], atol=1e-6, rtol=0)
