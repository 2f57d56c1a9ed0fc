"""Lets the tests of this folder import what they share with the scripts' tests (tests/media.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
