"""The learned normalisation of conv4_3, the loss, and a quick convolution for CPUs."""

from .l2norm import L2Norm
from .multibox_loss import MultiBoxLoss
from .winograd_conv import WinogradConv2d, use_winograd

__all__ = ["L2Norm", "MultiBoxLoss", "WinogradConv2d", "use_winograd"]
