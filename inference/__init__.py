"""Frames in, detections out: the Detector, reading and writing of videos and pictures, drawing."""

from inference.detector import Detections, Detector

__all__ = ["Detections", "Detector"]
