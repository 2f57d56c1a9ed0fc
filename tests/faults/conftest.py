"""Fixtures of the tests of faults: scripts in processes of their own."""

import os
import signal

import pytest
from tiny import make_checkpoint

if os.name == "posix":
    from processes import Script, start_server
else:  # neither such signals nor limits
    collect_ignore = [f"test_{kind}.py" for kind in ("full_disk", "killed_training", "short_memory", "signals")]


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
