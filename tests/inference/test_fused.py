"""Convolution and ReLU in one pass, against two."""

import golden_inputs
import pytest
import torch
from torch import nn

from inference.fused import ConvReLU, fuse_relus
from ssd import build_ssd
from utils.system import cpu_computes_bfloat16

BFLOAT16 = pytest.param(
    torch.bfloat16, marks=pytest.mark.skipif(not cpu_computes_bfloat16(), reason="the CPU lacks bfloat16")
)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_equals_the_network(dtype):
    """Base, extra layers and heads compute the same; the state dict keeps its keys and its tensors."""
    net = build_ssd("train", width=0.25).eval().to(dtype, memory_format=torch.channels_last)
    x = golden_inputs.images().to(dtype)
    state = net.state_dict()
    with torch.inference_mode():
        expected = net.raw(x)
        assert fuse_relus(net) == sum(isinstance(module, ConvReLU) for module in net.modules()) == 15
        for output, tensor in zip(net.raw(x), expected, strict=True):
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(output, tensor, rtol=0, atol=tolerance * float(tensor.abs().max()))
    assert net.state_dict().keys() == state.keys()
    assert all(net.state_dict()[key].data_ptr() == tensor.data_ptr() for key, tensor in state.items())
    assert fuse_relus(net) == 0


@pytest.mark.parametrize("settings", [
    {"kernel_size": 1}, {"kernel_size": 3, "padding": 6, "dilation": 6}, {"kernel_size": 3, "stride": 2, "bias": False},
    {"kernel_size": 3, "groups": 2},
], ids=str)  # fmt: skip
def test_equals_any_convolution(settings, generator):
    conv = nn.Conv2d(4, 6, **settings)
    x = torch.randn(2, 4, 13, 9, generator=generator)
    before = x.clone()
    result = ConvReLU(conv)(x)
    torch.testing.assert_close(result, conv(x).relu(), rtol=0, atol=1e-5)
    assert result.min() == 0 and not result.requires_grad
    assert torch.equal(x, before)
