"""A convolution that takes the quicker way where there is one."""

import torch
from torch import nn

from ..functions.winograd import Winograd, convolve, transform_kernels

LEAST_CHANNELS = 128  # in and out; with fewer, transforming takes what the products save


class WinogradConv2d(nn.Conv2d):
    """nn.Conv2d for kernels of 3x3, stride 1 and padding 1: in float32 on a CPU by Winograd's algorithm.

    Parameters and their names are nn.Conv2d's. The result comes channels last.
    """

    kernels = None  # transformed ahead, where the weights won't change

    def forward(self, x):
        """[B, C, H, W] -> [B, K, H, W]."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if self.kernels is not None:
            return convolve(x, self.kernels, self.bias)
        return Winograd.apply(x, self.weight, self.bias)


def use_winograd(net, *, frozen=False):
    """Let a network's large 3x3 convolutions take the quicker way, in place.

    Args:
        net: module whose nn.Conv2d are looked through.
        frozen: the weights won't change any more, and no gradients are asked for: kernels are transformed once (and
            take four times the memory).

    Returns:
        How many convolutions do.
    """
    found = 0
    for module in net.modules():
        if type(module) in (nn.Conv2d, WinogradConv2d) and _fits(module):
            module.__class__ = WinogradConv2d  # same parameters, other arithmetic: optimizers needn't know
            module.kernels = transform_kernels(module.weight) if frozen else None
            found += 1
    return found


def _fits(conv):
    plain = (conv.stride, conv.padding, conv.dilation, conv.groups) == ((1, 1), (1, 1), (1, 1), 1)
    zeros = conv.padding_mode == "zeros"
    return conv.kernel_size == (3, 3) and plain and zeros and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
