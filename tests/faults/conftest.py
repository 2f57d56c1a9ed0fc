"""What the tests of faults share: a network that answers at once, and the count of what was tried."""

import pytest
from ledger import FAULTS
from tiny import make_checkpoint


@pytest.fixture
def tried():
    """(fault, ending, times=1) -> None: count a fault that was tried, and how it ended, for the table at the end."""
    return lambda fault, ending, times=1: FAULTS[fault].update({ending: times})


@pytest.fixture(scope="session")
def times(request):
    """How often a random moment is tried."""
    return 20 if request.config.getoption("--long") else 2


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Of the network that sees a dog and a person in everything."""
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pth")
