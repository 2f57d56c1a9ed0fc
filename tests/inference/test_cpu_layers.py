"""The layers that replace others on CPU: Winograd convolutions, and convolutions with their ReLU."""

from copy import deepcopy

import golden_inputs
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from inference import winograd
from inference.fused import ConvReLU, fuse_relus
from inference.winograd import WinogradConv2d, convolve, transform_kernels, use_winograd
from ssd import build_ssd
from utils.system import cpu_computes_bfloat16

# batch, channels in and out, height, width: sides that fill tiles and that don't, smaller than a tile, many tiles
SHAPES = [(1, 3, 5, 7, 9), (2, 4, 3, 19, 19), (3, 2, 2, 1, 1), (2, 8, 8, 38, 13), (1, 2, 3, 4, 8), (5, 3, 2, 2, 3)]


@pytest.mark.parametrize("chunk", [1, 3, 7, 400])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_winograd_equals_the_direct_convolution(monkeypatch, generator, shape, chunk):
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
    packed = {}
    for images in (x.float(), x[:1].float()):  # by oneDNN, which computes in float32
        result = convolve(images, transform_kernels(weight).float(), bias.float(), packed)
        expected = functional.conv2d(images.double(), weight, bias, padding=1)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4)
    assert 1 <= len(packed) <= 2  # numbers of tiles
    assert torch.equal(x, before)


@pytest.mark.parametrize("changes", [
    {"kernel_size": 1, "padding": 0}, {"padding": 0}, {"stride": 2}, {"padding": 2, "dilation": 2}, {"groups": 2},
    {"padding_mode": "reflect"}, {"in_channels": 64}, {"out_channels": 64},
], ids=str)  # fmt: skip
def test_winograd_leaves_other_layers_alone(changes):
    settings = {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1}
    assert use_winograd(nn.Sequential(nn.Conv2d(**settings))) == 1
    net = nn.Sequential(nn.Conv2d(**{**settings, **changes}))
    assert use_winograd(net) == 0
    assert type(net[0]) is nn.Conv2d


@pytest.mark.parametrize(("replace", "slow", "kind", "count"), [
    (use_winograd, False, WinogradConv2d, 10), (use_winograd, True, WinogradConv2d, 10),
    (fuse_relus, None, ConvReLU, 15),
])  # fmt: skip
def test_golden_values_hold_and_so_does_the_state_dict(golden, golden_weights, replace, slow, kind, count, monkeypatch):
    """Winograd replaces conv2_2 to conv5_3; the other one also replaces fc6 and fc7."""
    monkeypatch.setattr(winograd, "mkl_is_slow", lambda: slow)
    net = build_ssd("train", 300, 21)
    net.load_state_dict(golden_weights, strict=True)
    state = net.state_dict()
    assert replace(net.eval()) == sum(isinstance(module, kind) for module in net.modules()) == count
    assert replace(net) == 0
    with torch.no_grad():
        loc, conf, _ = net(golden_inputs.images())
    for name, output in (("loc", loc), ("conf", conf)):
        expected = golden[f"forward_{name}"]
        rows = output[:, golden["forward_rows"]].numpy()
        assert np.abs(rows - expected).max() <= 1e-4 * np.abs(expected).max()
    assert torch.equal(deepcopy(net)(golden_inputs.images())[1], conf)
    assert net.state_dict().keys() == state.keys()
    assert all(net.state_dict()[key].data_ptr() == tensor.data_ptr() for key, tensor in state.items())


@pytest.mark.skipif(not cpu_computes_bfloat16(), reason="the CPU lacks bfloat16")
def test_fused_relus_in_bfloat16():
    net = build_ssd("train", width=0.25).eval().to(torch.bfloat16, memory_format=torch.channels_last)
    x = golden_inputs.images().bfloat16()
    with torch.inference_mode():
        expected = net.raw(x)
        fuse_relus(net)
        for output, tensor in zip(net.raw(x), expected, strict=True):
            torch.testing.assert_close(output, tensor, rtol=0, atol=2e-2 * float(tensor.abs().max()))
