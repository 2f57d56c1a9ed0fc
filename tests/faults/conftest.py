"""Fixtures of the tests of faults: scripts in processes, and the count of what was tried."""

import os
import signal

import pytest
from ledger import FAULTS
from tiny import make_checkpoint

if os.name == "posix":
    from processes import Script, start_server
else:  # neither such signals nor limits
    collect_ignore = ["test_full_disk.py", "test_killed_training.py", "test_memory.py", "test_signals.py"]


@pytest.fixture
def tried():
    """(fault, ending, times=1) -> None: count a fault that was tried, and how it ended, for the table at the end."""
    return lambda fault, ending, times=1: FAULTS[fault].update({ending: times})


@pytest.fixture(scope="session")
def times(request):
    """Number of random moments to try."""
    return 20 if request.config.getoption("--long") else 2


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A network that finds a dog and a person in every image."""
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pth")


@pytest.fixture(scope="module")
def start():
    """The class Script; no process outlives the tests of the module."""
    start_server()
    scripts = []

    def start(*what, **how):
        scripts.append(Script(*what, **how))
        return scripts[-1]

    yield start
    for script in scripts:
        if script.code is None:
            script.signal(signal.SIGKILL, group=True)
