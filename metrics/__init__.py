"""Scores and reports."""

import utils  # noqa: F401 (before OpenCV)
