"""The OpenVINO engine. Its tests are in openvino_cases.py and run in a process of their own."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(not (find_spec("openvino") and find_spec("nncf")), reason="needs requirements-engines.txt")
@pytest.mark.slow
def test_in_a_process_of_its_own():
    """A process that had run hundreds of other tests before OpenVINO and NNCF has crashed."""
    cases = Path(__file__).with_name("openvino_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", cases]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
