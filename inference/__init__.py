"""Frames in, detections out: the Detector, reading and writing of videos and pictures, drawing."""

from inference.detector import Detections, Detector
from utils import images  # noqa: F401 (before OpenCV, whose limits it sets)

__all__ = ["Detections", "Detector"]
