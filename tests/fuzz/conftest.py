"""The attack on a reader, in the length that --long asks for."""

import os
from functools import partial

import pytest

if os.name == "posix":
    import trials
else:
    collect_ignore_glob = ["test_*.py"]  # nothing forks there


@pytest.fixture
def attack(request):
    """trials.attack(kind, path, make, read, named=None)."""
    return partial(trials.attack, factor=6 if request.config.getoption("--long") else 1)
