"""The mathematics of SSD on tensors: box forms, matching, priors, detection, loss."""

from .functions import Detect, PriorBox
from .modules import L2Norm, MultiBoxLoss

__all__ = ["Detect", "L2Norm", "MultiBoxLoss", "PriorBox"]
