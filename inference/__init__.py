"""Images and video frames in, detections out."""

import utils  # noqa: F401 (before OpenCV)

__all__ = ["Detections", "Detector"]


def __getattr__(name):
    """Import the detector, and PyTorch with it, when it is asked for: scripts check their inputs before."""
    if name in __all__:
        from inference import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
