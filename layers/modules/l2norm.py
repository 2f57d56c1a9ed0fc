"""L2 normalization over channels with a learned scale (ParseNet; section 3.1 of the SSD paper)."""

import torch
from torch import nn


class L2Norm(nn.Module):
    """Scale the channel vector at each position of a feature map to unit length, then scale each channel.

    conv4_3 has larger activations than the later maps; the paper starts the scale at 20 and learns it.

    Args:
        n_channels: channels of the map.
        scale: initial scale of every channel.
    """

    def __init__(self, n_channels, scale):
        super().__init__()
        self.n_channels = n_channels
        self.gamma = scale
        self.eps = 1e-10
        self.weight = nn.Parameter(torch.full((n_channels,), float(scale)))

    def reset_parameters(self):
        nn.init.constant_(self.weight, self.gamma)

    def forward(self, x):
        """x: [batch, n_channels, height, width] -> the same shape and dtype."""
        # In float32: squares of half-precision activations overflow.
        dtype = torch.float32 if x.dtype.itemsize < 4 else x.dtype
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=dtype) + self.eps
        # At positions that are all zero (common early in training), the gradient is 0 instead of 20 / eps.
        norm = norm.masked_fill(norm <= self.eps, torch.inf)
        return (x / norm * self.weight.view(1, -1, 1, 1)).to(x.dtype)
