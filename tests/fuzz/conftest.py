"""Number of inputs."""

import os

import pytest

if os.name != "posix":
    collect_ignore_glob = ["test_*.py"]  # nothing forks there


@pytest.fixture
def count(request):
    """Function from the number of inputs in the short form to the number in this run: with --long, six times as many."""
    return lambda short: short * 6 if request.config.getoption("--long") else short
