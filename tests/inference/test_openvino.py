"""The OpenVINO engine. Its own tests are in openvino_cases.py and run in a process of their own."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from inference import Detector, openvino
from utils.errors import InputError
from weights.catalogue import EMBEDDED

needs_openvino = pytest.mark.skipif(
    not all(find_spec(name) for name in ("openvino", "nncf")), reason="needs requirements-engines.txt"
)


@needs_openvino
@pytest.mark.slow
def test_in_a_process_of_its_own():
    """A process that had run hundreds of other tests before OpenVINO and NNCF has crashed."""
    cases = Path(__file__).with_name("openvino_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cases]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(("precision", "missing"), [("auto", "openvino"), ("int8", "nncf")])
def test_a_missing_package_is_named_before_the_weights_are_looked_for(precision, missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", sys)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=rf"{missing} is not installed; pip install -r requirements-engines\.txt"):
        Detector(tmp_path / "none.pth", engine="openvino", precision=precision)


def test_a_broken_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "broken_one.py").write_text("raise ImportError('libtbb.so.12: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"broken_one can't be imported \(libtbb.so.12: cannot open\); pip install"):
        openvino.require("broken_one")


def test_cuda_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match="--engine openvino: runs on CPU only; use --engine torch"):
        Detector(EMBEDDED, device="cuda", engine="openvino")


def test_calibration_images_of_the_clip(monkeypatch):
    monkeypatch.setattr(openvino, "CALIBRATION_IMAGES", 12)
    one, other = (np.stack(list(openvino.sample_images(300))) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (12, 300, 300, 3)
    assert one.dtype == np.uint8
    assert one.std(axis=0).mean() > 30  # they differ
