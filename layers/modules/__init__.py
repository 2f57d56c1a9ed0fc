"""The learned normalization of conv4_3, and the loss."""

from .l2norm import L2Norm
from .multibox_loss import MultiBoxLoss

__all__ = ["L2Norm", "MultiBoxLoss"]
