"""Images and video frames in, detections out."""

from inference.detector import Detections, Detector

__all__ = ["Detections", "Detector"]
