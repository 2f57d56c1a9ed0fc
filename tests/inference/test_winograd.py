"""The Winograd convolution against F.conv2d."""

import golden_inputs
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from inference import winograd
from inference.winograd import WinogradConv2d, convolve, transform_kernels, use_winograd
from ssd import build_ssd

# batch, channels in and out, height, width: sides that fill tiles and that don't, smaller than a tile, many tiles
SHAPES = [(1, 3, 5, 7, 9), (2, 4, 3, 19, 19), (3, 2, 2, 1, 1), (2, 8, 8, 38, 13), (1, 2, 3, 4, 8), (5, 3, 2, 2, 3)]


@pytest.mark.parametrize("chunk", [1, 3, 7, 400])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_direct_convolution(monkeypatch, generator, shape, chunk):
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    batch, inputs, outputs, height, width = shape
    x = torch.randn(batch, inputs, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
    before = x.clone()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for term in (bias, None):
            result = convolve(x.contiguous(memory_format=memory_format), transform_kernels(weight), term)
            expected = functional.conv2d(x, weight, term, padding=1)
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)
    assert torch.equal(x, before)


def test_error_in_float32(generator):
    """As a layer of VGG: about 1e-5 of the outputs' magnitude."""
    x = torch.randn(1, 256, 19, 19, generator=generator, dtype=torch.float64)
    weight = torch.randn(256, 256, 3, 3, generator=generator, dtype=torch.float64) / 48
    expected = functional.conv2d(x, weight, padding=1)
    result = convolve(x.float(), transform_kernels(weight.float()))
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (result - expected).std() < 1e-5 * expected.std()


def test_replaces_a_layer_and_keeps_the_state_dict(generator):
    net = nn.Sequential(nn.Conv2d(128, 130, 3, padding=1), nn.ReLU(inplace=True))
    state = net.state_dict()
    x = torch.randn(2, 128, 9, 9, generator=generator)
    with torch.no_grad():
        expected = net(x)
        assert use_winograd(net) == 1
        assert isinstance(net[0], WinogradConv2d)
        torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-4)
    assert net.state_dict().keys() == state.keys()
    assert all(net.state_dict()[key].data_ptr() == tensor.data_ptr() for key, tensor in state.items())
    assert use_winograd(net) == 0


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, stride=2, padding=1),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.Conv2d(128, 64, 3, padding=1),
    ],
    ids=str,
)
def test_leaves_other_layers_alone(conv):
    net = nn.Sequential(conv)
    assert use_winograd(net) == 0
    assert net[0] is conv


def test_golden_values_hold(golden, golden_weights):
    """Ten of VGG's thirteen convolutions are replaced, conv2_2 to conv5_3."""
    net = build_ssd("train", 300, 21)
    net.load_state_dict(golden_weights, strict=True)
    assert use_winograd(net.eval()) == 10
    with torch.no_grad():
        loc, conf, _ = net(golden_inputs.images())
    for name, output in (("loc", loc), ("conf", conf)):
        expected = golden[f"forward_{name}"]
        rows = output[:, golden["forward_rows"]].numpy()
        assert np.abs(rows - expected).max() <= 1e-4 * np.abs(expected).max()
