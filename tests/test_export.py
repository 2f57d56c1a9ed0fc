"""export.py and the ONNX files that it writes, run in ONNX Runtime."""

import json
import subprocess
import sys
from pathlib import Path

import golden_inputs
import numpy as np
import pytest
import torch
from lively import lively_checkpoint, lively_network
from tiny import DOG, DOG_SCORE, make_checkpoint

import export as export_script
from data import VOC_CLASSES
from data.config import CONFIGS
from data.transforms import to_input
from inference.engines.export import Disagreement, compare_detections, export, relative_difference
from inference.engines.onnx_file import LEAST_OPSET, Graph, add_detect, build_model
from layers.functions import Detect
from ssd import build_ssd
from utils.errors import InputError
from weights.checkpoint import CheckpointInfo, load_network

onnx = pytest.importorskip("onnx", reason="needs requirements-engines.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs requirements-engines.txt")
ROOT = Path(__file__).resolve().parents[1]


def run(*flags):
    export_script.main(export_script.get_args_parser().parse_args([str(flag) for flag in flags]))


def session(model):
    model = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def random_pictures(batch, size=300, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (batch, size, size, 3), np.uint8)


@pytest.fixture
def checkpoint(tmp_path):
    return lively_checkpoint(tmp_path / "lively.pth")


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_heads_are_the_networks_at_any_batch(order):
    net, info = lively_network(channel_order=order)
    model = session(build_model(net, info))
    for batch in (1, 3):
        pictures = random_pictures(batch)
        loc, conf, priors = model.run(["loc", "conf", "priors"], {"pictures": pictures})
        with torch.no_grad():
            expected = net.raw(to_input(torch.from_numpy(pictures), order))
        for found, tensor in zip((loc, conf), expected, strict=True):
            assert found.shape == tensor.shape
            assert np.abs(found - tensor.numpy()).max() < 1e-4 * tensor.abs().max()
        np.testing.assert_array_equal(priors, net.priors.numpy())


def test_ssd512():
    torch.manual_seed(0)
    info = CheckpointInfo(config=CONFIGS["SSD512-COCO"], class_names=("a", "b"), width=1 / 32)
    net = info.build().eval()
    pictures = random_pictures(1, 512)
    (found,) = session(build_model(net, info)).run(["conf"], {"pictures": pictures})
    with torch.no_grad():
        expected = net.raw(to_input(torch.from_numpy(pictures)))[1]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * expected.abs().max())


def test_with_nms_gives_what_detect_gives(checkpoint):
    net, info = load_network(checkpoint)
    net.detect = Detect(21, 0, 50, 0.05, 0.3)
    pictures = random_pictures(2)
    model = build_model(net, info, with_nms=True)
    (found,) = session(model).run(None, {"pictures": pictures})
    with torch.no_grad():
        expected = net(to_input(torch.from_numpy(pictures)))
    assert found.shape == (2, 21, 50, 5)
    assert (found[:, 0] == 0).all()
    assert (found[..., 0] > 0).sum() > 500
    assert (found[:, 1:, -1, 0] == 0).any()  # so that padding is compared, too
    assert (found[:, 1:, -1, 0] > 0).any()  # and full rows
    assert compare_detections(found, expected.numpy()) > 500


@pytest.mark.parametrize(("top_k", "nms_top_k", "threshold"), [(200, None, 0.01), (20, 400, 0.3), (9000, 9000, 0.6)])
def test_detect_in_onnx_on_the_golden_heads(top_k, nms_top_k, threshold, priors300):
    """The part behind the heads, alone: thousands of confident, overlapping boxes."""
    detect = Detect(21, 0, top_k, threshold, 0.45, nms_top_k=nms_top_k)
    loc, scores = golden_inputs.detect()
    graph = Graph(onnx)
    graph.constant("priors", priors300)
    add_detect(graph, "loc", "conf", "priors", detect, len(priors300))
    model = graph.model({"pictures": ["batch"]}, {"detections": ["batch", 21, top_k, 5]}, LEAST_OPSET)
    del model.graph.input[:]
    for name in ("loc", "conf"):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    (found,) = session(model).run(None, {"loc": loc.numpy(), "conf": scores.log().numpy()})
    assert compare_detections(found, detect(loc, scores, priors300).numpy()) > 200


def test_scores_that_are_no_numbers_are_no_detections(priors300):
    net, info = lively_network()
    with torch.no_grad():
        net.conf[0].bias[1] = torch.nan
    (found,) = session(build_model(net, info, with_nms=True)).run(None, {"pictures": random_pictures(1)})
    assert np.isfinite(found).all()
    assert (found[..., 0] > 0).any()


@pytest.mark.parametrize("opset", [LEAST_OPSET, onnx.defs.onnx_opset_version()])
def test_opsets(opset, tmp_path):
    net, info = lively_network()
    export(tmp_path / "a.onnx", net, info, opset=opset)
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == opset


def test_the_script_says_how_close_it_is_and_what_is_in_the_file(checkpoint, tmp_path, capsys):
    run("--trained_model", checkpoint, "--output", tmp_path / "out.onnx")
    out = capsys.readouterr().out
    assert "in batches of 1 and 2" in out
    assert str(tmp_path / "out.onnx") in out
    properties = session((tmp_path / "out.onnx").read_bytes()).get_modelmeta().custom_metadata_map
    assert json.loads(properties["class_names"]) == list(VOC_CLASSES)
    assert json.loads(properties["config"])["min_sizes"] == [30, 60, 111, 162, 213, 264]
    assert [path.name for path in tmp_path.iterdir() if "onnx" in path.name] == ["out.onnx"]


def test_the_script_with_nms(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("--trained_model", make_checkpoint(tmp_path / "tiny.pth"), "--with_nms", "--top_k", 7)
    run("--trained_model", "tiny.pth", "--output", "b.onnx", "--with_nms", "--confidence_threshold", 0.8)
    assert [line for line in capsys.readouterr().out.splitlines() if "rows" in line] == [
        "detections as Detect gives them: 6 rows",  # of a picture and of two
        "detections as Detect gives them: 3 rows",
    ]
    (found,) = session((tmp_path / "tiny.onnx").read_bytes()).run(None, {"pictures": random_pictures(2)})
    assert found.shape == (2, 21, 7, 5)
    assert (found[..., 0] > 0).sum() == 4  # a dog and a person in each
    assert found[1, 1 + DOG, 0, 0] == pytest.approx(DOG_SCORE, abs=1e-3)
    (found,) = session((tmp_path / "b.onnx").read_bytes()).run(None, {"pictures": random_pictures(1)})
    assert found.shape == (1, 21, 200, 5)
    assert (found[..., 0] > 0).sum() == 1


def test_a_file_that_differs_is_not_kept(checkpoint, tmp_path, monkeypatch):
    net, info = load_network(checkpoint)
    target = tmp_path / "out.onnx"
    target.write_text("an earlier one")
    right = build_model(net, info)
    weight = next(tensor for tensor in right.graph.initializer if tensor.name == "extras.7.weight")
    changed = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    monkeypatch.setattr("inference.engines.export.build_model", lambda *_, **__: right)
    with pytest.raises(InputError, match=r"out\.onnx: not kept"):
        export(target, net, info)
    assert target.read_text() == "an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lively.pth", "out.onnx"]


def test_what_the_comparison_refuses():
    ones = np.ones((1, 4), np.float32)
    with pytest.raises(Disagreement):
        relative_difference(ones, ones + 2e-4, "loc")
    with pytest.raises(Disagreement):
        relative_difference(ones * np.nan, ones, "loc")
    with pytest.raises(Disagreement):
        relative_difference(ones[:, :2], ones, "loc")
    rows = np.zeros((1, 2, 3, 5), np.float32)
    rows[0, 1, :2] = [[0.9, 0, 0, 1, 1], [0.5, 0, 0, 0.5, 1]]
    assert compare_detections(rows, rows[:, :, [1, 0, 2]]) == 2
    for place, value in (((0, 1, 1, 0), 0), ((0, 1, 0, 3), 0.99)):
        other = rows.copy()
        other[place] = value
        for pair in ((rows, other), (other, rows)):
            with pytest.raises(Disagreement):
                compare_detections(*pair)


def test_layers_that_it_cannot_write_are_refused():
    net = build_ssd("test", width=1 / 16, batch_norm=True).eval()
    with pytest.raises(ValueError, match=r"vgg\.0.*fuse"):
        build_model(net, CheckpointInfo(width=1 / 16, batch_norm=True))
    net = build_ssd("test", width=1 / 16)
    net.detect.keep_top_k = 10
    with pytest.raises(ValueError, match="keep_top_k"):
        build_model(net, CheckpointInfo(width=1 / 16), with_nms=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "a.pth"], r"--output a\.pth.*\.onnx"),
        (["--output", "none/a.onnx"], "none/a.onnx can't be written"),
        (["--opset", "12"], "--opset 12"),
        (["--opset", "99"], "--opset 99"),
        (["--top_k", "9"], "--with_nms"),
        (["--confidence_threshold", "0.5"], "--with_nms"),
        (["--with_nms", "--top_k", "0"], "--top_k 0"),
        (["--with_nms", "--confidence_threshold", "1"], "--confidence_threshold 1"),
        (["--trained_model", "none.pth"], "none.pth"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "tiny.pth")
    with pytest.raises(InputError, match=message) as caught:
        run("--trained_model", "tiny.pth", *flags)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pth"]


def test_as_a_user_runs_it(tmp_path):
    """--help, which must not import torch, and a mistake: one line, exit code 2."""
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "export.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--with_nms" in shown.stdout
    assert "torch" not in shown.stderr
    ended = subprocess.run(
        [sys.executable, ROOT / "export.py", "--output", "a.txt"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --output ")
    assert ended.stderr.count("\n") == 1
