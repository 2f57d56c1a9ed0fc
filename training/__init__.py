"""Training: the pieces of train.py's loop."""

import utils  # noqa: F401 (before OpenCV)
