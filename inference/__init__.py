"""Images and video frames in, detections out."""

import utils  # noqa: F401 (before OpenCV)

__all__ = ["Detections", "Detector"]


def __getattr__(name):
    """Import the detector and PyTorch on first use, so that scripts can check their inputs first."""
    if name in __all__:
        from inference import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
