"""The normalization of conv4_3."""

import pytest
import torch

from layers.modules import L2Norm


def test_equals_the_formula(generator):
    layer = L2Norm(5, 20)
    assert torch.equal(layer.state_dict()["weight"], torch.full((5,), 20.0))
    x = torch.randn(2, 5, 3, 4, generator=generator) * 50
    x[0, :, 1, 2] = 0
    length = (x.double() ** 2).sum(dim=1, keepdim=True) ** 0.5
    scale = torch.tensor([20.0, 10.0, 1.0, 0.5, -3.0]).double()
    layer.weight.data.copy_(scale)
    expected = (x / length * scale.view(1, 5, 1, 1)).nan_to_num(0.0)
    torch.testing.assert_close(layer(x), expected.float(), atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    """256 channels of 300: the sum of squares is 2.3e7, far above float16's 65504."""
    result = L2Norm(256, 20)(torch.full((1, 256, 1, 1), 300.0, dtype=dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), torch.full((1, 256, 1, 1), 20 / 16), atol=0.01, rtol=0)
