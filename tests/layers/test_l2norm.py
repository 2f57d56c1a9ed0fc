"""The normalization of conv4_3."""

import math

import pytest
import torch
from torch import nn

from layers.modules import L2Norm


def test_equals_the_formula(generator):
    layer = L2Norm(5, 20)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([20.0, 10.0, 1.0, 0.5, -3.0]))
    x = torch.randn(2, 5, 3, 4, generator=generator) * 50
    x[0, :, 1, 2] = 0
    expected = torch.zeros_like(x)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        values = x[b, :, i, j].tolist()
        length = math.hypot(*values) or 1
        pairs = zip(layer.weight.tolist(), values, strict=True)
        expected[b, :, i, j] = torch.tensor([scale * value / length for scale, value in pairs])
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_the_scale_is_a_parameter_that_starts_as_told():
    layer = L2Norm(7, 20)
    assert list(layer.state_dict()) == ["weight"]
    assert torch.equal(layer.weight, torch.full((7,), 20.0))
    nn.init.zeros_(layer.weight)
    layer.reset_parameters()
    assert torch.equal(layer.weight, torch.full((7,), 20.0))


def test_all_zero_positions_have_zero_gradient(generator):
    """Dead ReLUs are common early in training; they must give neither NaN nor 1 / eps."""
    layer = L2Norm(6, 20)
    x = torch.randn(1, 6, 2, 2, generator=generator)
    x[0, :, 0, 1] = 0
    x.requires_grad_()
    (layer(x) * torch.randn(1, 6, 2, 2, generator=generator)).sum().backward()
    assert torch.equal(x.grad[0, :, 0, 1], torch.zeros(6))
    assert (x.grad[0, :, 1, 1] != 0).all()
    assert torch.isfinite(layer.weight.grad).all()


def test_gradient_is_right_elsewhere(generator):
    """In float64: gradients of a whole network are only comparable to 1e-6 there."""
    x = torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(L2Norm(3, 2).double(), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    """256 channels of 300: the sum of squares is 2.3e7, far above float16's 65504."""
    result = L2Norm(256, 20)(torch.full((1, 256, 1, 1), 300.0, dtype=dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), torch.full((1, 256, 1, 1), 20 / 16), atol=0.01, rtol=0)
