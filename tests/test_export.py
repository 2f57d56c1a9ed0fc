"""export.py and the ONNX files that it writes, run in ONNX Runtime."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from checks import refused
from golden_inputs import detect as golden_heads
from tiny import DOG, DOG_SCORE, lively_network, make_checkpoint

import export as script
from data import VOC_CLASSES
from data.transforms import to_input
from inference import onnx as export_module
from inference.onnx import export, traceable_detect
from layers.functions import Detect
from utils.errors import exit_on_input_error

onnxruntime = pytest.importorskip("onnxruntime", reason="needs requirements-engines.txt")
pytest.importorskip("onnxscript", reason="needs requirements-engines.txt")


def run(*flags):
    script.main(script.get_args_parser().parse_args([str(flag) for flag in flags]))


def open_session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


IMAGES = np.random.RandomState(0).randint(0, 256, (3, 300, 300, 3), np.uint8)


@pytest.mark.slow
def test_heads_in_float32_and_float16(tmp_path):
    net, info = lively_network(channel_order="BGR")
    with torch.no_grad():
        expected = [*net.raw(to_input(torch.from_numpy(IMAGES), "BGR")), net.priors]
    for half, tolerance in ((False, 1e-4), (True, 2e-2)):
        count, threshold = export(tmp_path / "a.onnx", net, info, net.detect, half=half)
        assert (count > 500, threshold) == (True, 0.01)
        session = open_session(tmp_path / "a.onnx")
        found = session.run(["loc", "conf", "priors"], {"images": IMAGES})
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == np.float32
            assert np.abs(one - other.numpy()).max() < tolerance * other.abs().max()
    assert (tmp_path / "a.onnx").stat().st_size < 0.8 * sum(4 * weight.numel() for weight in net.parameters())
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["class_names"]) == list(VOC_CLASSES)
    assert json.loads(properties["config"])["min_sizes"] == [30, 60, 111, 162, 213, 264]


@pytest.mark.slow
def test_with_nms(tmp_path, monkeypatch, capsys):
    """Nothing is above the threshold in the clip: the check lowers it until there are rows to compare."""
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "tiny.pth")
    run("--trained_model", "tiny.pth", "--with_nms", "--top_k", 7, "--confidence_threshold", 0.99)
    assert "compared with PyTorch: 6 detections with scores over 0.49" in capsys.readouterr().out
    (found,) = open_session("tiny.onnx").run(["detections"], {"images": IMAGES})
    assert found.shape == (3, 21, 7, 5)
    assert (found == 0).all()
    run("--trained_model", "tiny.pth", "--with_nms", "--confidence_threshold", 0.8, "--output", "b.onnx")
    (found,) = open_session("b.onnx").run(["detections"], {"images": IMAGES[:2]})
    assert (found[..., 0] > 0).sum() == 2
    assert found[1, 1 + DOG, 0, 0] == pytest.approx(DOG_SCORE, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.onnx", "tiny.onnx", "tiny.pth"]


@pytest.mark.parametrize(("top_k", "threshold"), [(200, 0.01), (20, 0.3), (9000, 0.6)])
def test_traceable_detect_gives_the_rows_of_detect(top_k, threshold, priors300):
    """Thousands of confident, overlapping boxes, in two images."""
    detect = Detect(21, 0, top_k, threshold, 0.45)
    loc, scores = golden_heads()
    found, expected = traceable_detect(detect, loc, scores, priors300), detect(loc, scores, priors300)
    assert (expected[..., 0] > 0).sum() > 200
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("with_nms", "message"), [(False, "conf differs"), (True, "detections differ")])
def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch, with_nms, message):
    net, info = lively_network()
    target = tmp_path / "out.onnx"
    target.write_text("an earlier one")
    write = export_module._write

    def write_other_weights(path, module, *args):
        with torch.no_grad():
            module.net.conf[0].weight.mul_(1.01)
        write(path, module, *args)

    monkeypatch.setattr(export_module, "_write", write_other_weights)
    refused(rf"out\.onnx: not written.*{message}", export, target, net, info, net.detect, with_nms=with_nms)
    assert target.read_text() == "an earlier one"
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize(("flags", "message"), [
    ("--with_nms --top_k 0", "argument --top_k: found"),
    ("--with_nms --confidence_threshold 1", "argument --confidence_threshold: found"),
    ("--output a.pth", r"--output a\.pth.*\.onnx"),
    ("--top_k 9", "--with_nms"),
    ("--confidence_threshold 0.5", "--with_nms"),
    ("--trained_model none.pth", r"none\.pth"),
    ("", r"onnxscript is not installed; pip install -r requirements-engines\.txt"),
])  # fmt: skip
def test_invalid_flags_and_a_missing_package_end_in_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    make_checkpoint(tmp_path / "tiny.pth")
    with pytest.raises(SystemExit, match="2"), exit_on_input_error():
        run("--trained_model", "tiny.pth", *flags.split())
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pth"]
