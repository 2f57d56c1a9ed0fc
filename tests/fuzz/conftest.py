"""How many inputs are tried."""

import pytest


@pytest.fixture
def count(request):
    """Function of the inputs in CI's short form: as many there, six times as many with --long."""
    return lambda short: short * 6 if request.config.getoption("--long") else short
