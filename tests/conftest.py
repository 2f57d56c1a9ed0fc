"""What tests of several folders share: the flag --long, golden values and the full-width network."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import golden_inputs
import numpy as np
import pytest
import torch

from data.config import voc
from layers.functions import PriorBox
from ssd import build_ssd

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="20 killed runs instead of 2, six times the hostile files")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and the test machine may be shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden():
    """What the reference implementation computes: {name: array}."""
    with np.load(GOLDEN / "ssd300.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def golden_shapes():
    """Keys and shapes of the published SSD300 state dicts (VOC)."""
    return json.loads((GOLDEN / "state_dict_voc300.json").read_text())


@pytest.fixture(scope="session")
def golden_weights(golden_shapes):
    """The state dict of the golden forward pass, not to be changed."""
    return golden_inputs.weights(golden_shapes)


@pytest.fixture(scope="session")
def golden_net(golden_weights):
    """SSD300 in train phase and evaluation mode with the golden weights, not to be changed."""
    net = build_ssd("train", 300, 21)
    net.load_state_dict(golden_weights, strict=True)
    return net.eval()


@pytest.fixture(scope="session")
def golden_output(golden_net):
    """(loc, conf, priors) of the golden images."""
    with torch.no_grad():
        return golden_net(golden_inputs.images())


@pytest.fixture(scope="session")
def priors300():
    """SSD300's priors for VOC: float32 [8732, 4]."""
    return PriorBox(voc).forward()


@pytest.fixture
def run(files, tmp_path, tmp_path_factory, monkeypatch, capsys):
    """Run Object_Detection.py in a copy of the module's `files`, in this process: (exit code, stdout, stderr)."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSD_CACHE", str(tmp_path_factory.mktemp("cache")))
    script = str(Path(__file__).parents[1] / "Object_Detection.py")

    def run(*arguments):
        flags = ["--device", "cpu", "--trained_model", "tiny.pth", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [script, *flags])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            return error.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
