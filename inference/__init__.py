"""Frames in, detections out: the Detector, reading and writing of videos and pictures, drawing."""

from data import limits  # noqa: F401 (before OpenCV, whose limits it sets)
from inference.detector import Detections, Detector

__all__ = ["Detections", "Detector"]
