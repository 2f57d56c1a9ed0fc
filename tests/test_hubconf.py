"""torch.hub's entry points, on this repository."""

from pathlib import Path

import pytest
import torch

from utils.errors import InputError
from weights import EMBEDDED

ROOT = str(Path(__file__).resolve().parents[1])


def load(name, **settings):
    return torch.hub.load(ROOT, name, source="local", **settings)


def test_networks_run():
    net = load("ssd300", weights=str(EMBEDDED))
    assert not net.training
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 300, 300)).shape == (1, 21, 200, 5)
        loc, conf, priors = load("ssd512", phase="train", num_classes=4)(torch.zeros(1, 3, 512, 512))
    assert (loc.shape, conf.shape, priors.shape) == ((1, 24564, 4), (1, 24564, 4), (24564, 4))


def test_the_detector_takes_images():
    (found,) = load("detector", device="cpu", threshold=0.5)([torch.zeros(3, 40, 60, dtype=torch.uint8)])
    assert found.boxes.shape == (len(found), 4)


def test_weights_of_another_network_are_refused():
    with pytest.raises(InputError, match="load it as ssd300"):
        load("ssd512", weights=str(EMBEDDED))
