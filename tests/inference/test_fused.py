"""Convolution and ReLU in one pass, against two."""

import golden_inputs
import pytest
import torch

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
