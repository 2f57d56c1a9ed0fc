"""OpenVINO finds what PyTorch finds; int8 comes close and is cached. Run by test_openvino.py."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino
import pytest
import torch
from checks import refused
from tiny import lively_network

from data.transforms import resize, to_input
from inference import Detector
from inference import openvino as engine
from inference.openvino import SAMPLE, OpenVINONetwork, choose_openvino_precision, quantized
from inference.video import VideoReader
from utils.images import write_image
from weights.catalogue import EMBEDDED
from weights.checkpoint import load_network


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def converted():
    return engine.convert(lively_network()[0])


@pytest.fixture
def quantizations(monkeypatch, converted):
    """Make conversion and quantization fast and without effect; return the list of the inputs of each quantization."""
    calls = []
    monkeypatch.setattr(engine, "CALIBRATION_IMAGES", 2)
    monkeypatch.setattr(engine, "convert", lambda net: converted)
    monkeypatch.setattr(engine, "quantize", lambda model, inputs: (calls.append(inputs), model)[1])
    return calls


def clip_frames(step):
    with VideoReader(SAMPLE) as reader:
        return list(reader)[::step]


def test_heads_agree_at_any_batch_and_outputs_are_copies(monkeypatch):
    net, _ = lively_network()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    run = OpenVINONetwork(net, torch.float32)
    assert run.compiled.get_property("INFERENCE_NUM_THREADS") == 2
    inputs = [torch.randn(batch, 3, 300, 300) * 50 for batch in (1, 3, 1)]
    outputs = [run(x) for x in inputs]
    with ThreadPoolExecutor(2) as pool:
        outputs += pool.map(run, inputs)
    for x, found in zip(inputs * 2, outputs, strict=True):
        with torch.no_grad():
            expected = net.raw(x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))


def test_the_same_detections_on_the_bundled_clip():
    frames = clip_frames(60)
    expected = Detector(EMBEDDED, "cpu", "float32", 0.05)(frames)
    detector = Detector(EMBEDDED, "cpu", "float32", 0.05, engine="openvino")
    assert sum(map(len, expected)) > 30
    for found, reference in zip(detector(frames), expected, strict=True):
        assert found.names == reference.names
        np.testing.assert_allclose(found.scores, reference.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, reference.boxes, atol=0.1)
    assert detector.description.endswith("on cpu in float32 with openvino")


def test_int8_comes_close(monkeypatch):
    """The heads differ from float32, but little; the layers that int8 would harm stay in float32."""
    monkeypatch.setattr(engine, "CALIBRATION_IMAGES", 16)  # 128 take a minute
    net, info = load_network(EMBEDDED)
    model = quantized(openvino.Core(), net, info.channel_order)
    frames = np.stack([resize(frame, 300) for frame in clip_frames(40)])
    x = to_input(torch.from_numpy(frames), info.channel_order)
    loc, conf = OpenVINONetwork(net, torch.int8, info.channel_order)(x)  # from the cache
    with torch.no_grad():
        true_loc, true_conf = net.raw(x)
    error = (conf.softmax(-1) - true_conf.softmax(-1)).abs()
    assert error.max() > 1e-3  # it is int8
    assert (error > 0.05).float().mean() < 1e-3
    # Offsets count where a prior matches an object; elsewhere they are not trained.
    matched = true_conf.softmax(-1)[..., 1:].amax(-1) > 0.3
    assert matched.sum() > 20
    assert (loc - true_loc)[matched].abs().mean() < 0.05 * true_loc[matched].abs().mean()
    convolutions = [node for node in model.get_ops() if node.get_type_name() == "Convolution"]
    in_float = [node for node in convolutions if node.input_value(1).get_node().get_type_name() == "Constant"]
    names = {node.get_friendly_name().partition("/")[0].removeprefix("__module.net.") for node in in_float}
    assert names == {"vgg.0", *(f"{head}.{index}" for head in ("loc", "conf") for index in range(2, 6))}


def test_the_quantized_network_is_cached(quantizations, cache, tmp_path, capsys):
    """Under its weights, the order of the channels, and the images that it is calibrated with."""
    core, (net, _) = openvino.Core(), lively_network()
    for order, gray, calls in (("RGB", None, 1), ("RGB", None, 1), ("BGR", None, 2), ("RGB", 50, 3), ("RGB", 60, 4)):
        if gray:
            write_image(tmp_path / "a.png", np.full((9, 9, 3), gray, np.uint8))
        quantized(core, net, order, tmp_path if gray else None)
        assert len(quantizations) == calls
    assert float(quantizations[-1][0].max()) == 60 - 104
    with torch.no_grad():
        net.vgg[0].weight.mul_(1.01)
    quantized(core, net)
    assert len(quantizations) == len(list(cache.glob("*.xml"))) == 5
    assert f"quantizing to int8 with {tmp_path}" in capsys.readouterr().err


def test_a_damaged_or_unwritable_cache_costs_only_time(quantizations, cache, capsys):
    core, (net, _) = openvino.Core(), lively_network()
    quantized(core, net)
    for path in sorted(cache.iterdir()):  # the weights, and the layers as XML
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b""):
            path.write_bytes(damaged)
            quantizations.clear()
            for _ in range(2):  # the second time, from the cache
                quantized(core, net)
            assert len(quantizations) == 1
    assert "note: not cached" not in capsys.readouterr().err
    path.unlink()
    path.mkdir()
    quantized(core, net)
    assert len(quantizations) == 2
    assert "note: not cached" in capsys.readouterr().err


def test_calibration_images_of_the_clip_are_always_the_same(monkeypatch):
    monkeypatch.setattr(engine, "CALIBRATION_IMAGES", 12)
    np.testing.assert_array_equal(*(list(engine.sample_images(300)) for _ in range(2)))


def test_calibration_images_that_cannot_be_used(tmp_path):
    net, _ = lively_network()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").write_text("not an image")
    for folder, message in (("none", "none: no such folder"), ("empty", "no images in this folder"), ("", r"a\.jpg")):
        refused(message, quantized, openvino.Core(), net, calibration=tmp_path / folder)


@pytest.mark.parametrize(("capable", "fastest"), [(True, True), (True, False), (False, False)])
def test_auto_is_the_fastest_precision_that_keeps_the_accuracy(capable, fastest, monkeypatch):
    core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8", *["BF16"] * capable])
    monkeypatch.setattr(openvino, "Core", lambda: core)
    monkeypatch.setattr("utils.system.bfloat16_is_fastest", lambda: fastest)
    assert choose_openvino_precision("auto") == (torch.bfloat16 if fastest else torch.float32)
    assert choose_openvino_precision("float32") == torch.float32
    assert choose_openvino_precision("int8") == torch.int8
    for name in ("float16", *["bfloat16"] * (not capable)):
        refused(f"--precision {name}", choose_openvino_precision, name)


FIRST_INFERENCES = """
import builtins, sys, time
from concurrent.futures import ThreadPoolExecutor
import torch
from inference import openvino as engine
from tiny import lively_network
engine.quantized = lambda core, *_: core.read_model(sys.argv[1])
run = engine.OpenVINONetwork(lively_network()[0], torch.int8)
load = builtins.__import__
builtins.__import__ = lambda name, *args: time.sleep("multiarray" in name) or load(name, *args)
with ThreadPoolExecutor(2) as pool:
    list(pool.map(run, [torch.zeros(1, 3, 300, 300)] * 2))
"""


def test_the_first_inferences_of_two_threads(tmp_path, converted):
    """OpenVINO imports a part of NumPy with the first array. Two threads at once could wait for each other for ever."""
    openvino.serialize(converted, tmp_path / "net.xml")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FIRST_INFERENCES, tmp_path / "net.xml"]
    subprocess.run(command, env=environment, timeout=60, check=True)


def test_nothing_is_reported_over_the_network(tmp_path, monkeypatch):
    """Converting must not start OpenVINO's telemetry, which creates ~/intel."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    engine.convert(lively_network()[0])
    assert not (tmp_path / "intel").exists()
    assert "openvino_telemetry" not in sys.modules or not list(tmp_path.glob("*"))


def test_a_broken_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "broken_one.py").write_text("raise ImportError('libtbb.so.12: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    refused(r"broken_one can't be imported \(libtbb.so.12: cannot open\); pip install", engine.require, "broken_one")
