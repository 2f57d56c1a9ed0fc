"""What the tests of faults share: a network that answers at once, and the table of what was tried."""

import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
from tiny import make_checkpoint

ENDINGS = defaultdict(Counter)  # fault -> how it ended -> times


@pytest.fixture
def tried():
    """(fault, ending) -> None: count a fault that was tried, and how it ended, for the table at the end."""
    return lambda fault, ending: ENDINGS[fault].update([ending])


@pytest.fixture(scope="session")
def times(request):
    """How often a random moment is tried."""
    return 20 if request.config.getoption("--long") else 2


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Of the network that sees a dog and a person in everything."""
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pth")


def pytest_terminal_summary(terminalreporter):
    if not ENDINGS:
        return
    width = max(map(len, ENDINGS)) + 2
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'fault':{width}}tried  how each ended")
    for fault, endings in ENDINGS.items():
        ended = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
        terminalreporter.write_line(f"{fault:{width}}{endings.total():5}  {ended}")
    terminalreporter.write_line(f"{sum(endings.total() for endings in ENDINGS.values())} faults in all")
