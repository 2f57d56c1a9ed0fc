"""The attack on a reader, in the length that --long asks for."""

import os

import pytest

if os.name == "posix":
    import trials
else:
    collect_ignore_glob = ["test_*.py"]  # nothing forks there


@pytest.fixture
def attack(request):
    """Try as many inputs as COUNTS says. Some must be accepted, or the reader is hardly tested."""
    factor = 6 if request.config.getoption("--long") else 1

    def attack(kind, path, make, read, named=None):
        assert "result" in trials.try_all(kind, path, make, read, trials.COUNTS[kind] * factor, named)

    return attack
