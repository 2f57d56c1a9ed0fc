"""Detector: images in, detections in pixels out."""

import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import refused
from PIL import Image
from tiny import DOG, DOG_BOX, DOG_SCORE, PERSON, PERSON_SCORE, lively_network, make_checkpoint, make_network

from data import RGB_MEANS
from inference import Detector
from inference.drawing import draw_detections
from inference.fused import ConvReLU
from inference.winograd import WinogradConv2d
from utils.errors import InputError
from utils.images import write_image
from utils.system import choose_precision
from weights.checkpoint import CheckpointInfo

SIZES = [(300, 300), (64, 48), (641, 357), (1, 1)]


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint that sees a dog and a person in every image."""
    return make_checkpoint(tmp_path / "tiny.pth")


def random_images(*sizes, seed=0):
    random = np.random.RandomState(seed)
    return [random.randint(0, 256, (height, width, 3), np.uint8) for width, height in sizes]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.02), ("float16", 0.02)])
def test_boxes_are_in_pixels_of_each_image(checkpoint, precision, tolerance):
    detector = Detector(checkpoint, "cpu", precision)
    assert detector.dtype == getattr(torch, precision)
    for (width, height), found in zip(SIZES, detector(random_images(*SIZES)), strict=True):
        assert (found.names, found.labels.tolist(), len(found)) == (["dog", "person"], [DOG, PERSON], 2)
        np.testing.assert_allclose(found.scores, [DOG_SCORE, PERSON_SCORE], atol=tolerance)
        np.testing.assert_allclose(found.boxes[0], np.multiply(DOG_BOX, [width, height, width, height]), rtol=1e-4)
        assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
        assert found.of_classes([PERSON]).as_dicts() == found.as_dicts()[1:]


def test_arrays_tensors_pil_images_and_paths_may_be_mixed(tmp_path):
    detector = Detector.of_network(*lively_network(), "cpu", "float32", 0.05)
    (image,) = random_images((40, 30))
    write_image(tmp_path / "a.png", image)
    transparent = np.dstack([image, np.full(image.shape[:2], 9, np.uint8)])
    read_only, view = image.copy(), np.repeat(image, 2, axis=1)[:, ::2]
    read_only.setflags(write=False)
    planes = torch.from_numpy(image.transpose(2, 0, 1).copy())  # [3, H, W]
    like = [planes, torch.from_numpy(image).permute(2, 0, 1), Image.fromarray(image), Image.fromarray(transparent)]
    like += [tmp_path / "a.png", str(tmp_path / "a.png"), read_only, view]
    expected, *others = detector([image, *like])
    assert len(expected) > 50
    for found in others:
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    drawn = image.copy()
    draw_detections(drawn, expected, scores=False)
    np.testing.assert_array_equal(expected.draw(image, scores=False), drawn)
    assert (drawn != image).any()
    assert (drawn != expected.draw(image)).any()
    np.testing.assert_array_equal(image, read_only)  # none of it changes the image
    assert len(detector([Image.fromarray(image[..., 0])])[0]) > 50  # gray


def test_other_input_is_refused(checkpoint, tmp_path):
    detector = Detector(checkpoint, device="cpu")
    assert detector([]) == []
    (image,) = random_images((9, 9))
    tensor = torch.from_numpy(image)
    for single in (image, tensor, Image.fromarray(image), "a.png", tmp_path):
        with pytest.raises(TypeError, match=r"a list of images, found \w+; use detector\(\[image\]\)"):
            detector(single)
    array_message, tensor_message = r"uint8 RGB \[H, W, 3\], found", r"uint8 RGB \[3, H, W\], found"
    for item, error, message in (
        *((item, TypeError, f"a path, found {type(item).__name__}") for item in (None, 3, b"a.png", [[0]])),
        *((item, ValueError, array_message) for item in (image[0], image[..., :2], image.astype(float), image[:0])),
        *((item, ValueError, tensor_message) for item in (tensor, torch.zeros(3, 9, 9), tensor.permute(2, 0, 1)[None])),
        (tmp_path / "none.png", InputError, r"none\.png"),
        (Image.new("I;16", (9, 9)), ValueError, "PIL image of 8 bits"),
    ):
        with pytest.raises(error, match=message):
            detector([image, item])


def test_the_threshold_is_the_checkpoint_s_unless_given(checkpoint):
    for own, given, expected in ((None, None, 0.6), (0.25, None, 0.25), (0.25, 0.0, 0.0)):  # own: of the checkpoint
        assert Detector.of_network(*make_network(threshold=own), threshold=given).threshold == expected
    with pytest.raises(ValueError, match=r"\[0, 1\), not 1"):
        Detector(checkpoint, device="cpu", threshold=1)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_rows_are_those_of_the_network(order):
    """The Detector finds what net(x) finds on an input made by hand, in the checkpoint's order of channels."""
    detector = Detector.of_network(*lively_network(channel_order=order), "cpu", "float32", threshold=0.01)
    assert detector.description == "network without a file, SSD300-VOC, 20 classes, on cpu in float32"
    image = np.kron(random_images((10, 10))[0], np.ones((30, 30, 1), np.uint8))
    x = torch.from_numpy(image - np.array(RGB_MEANS, np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        rows = detector.net(x if order == "RGB" else x.flip(1))[0]
    (found,) = detector([image])
    assert len(found) == int((rows[..., 0] > 0).sum()) > 100
    for label in range(20):
        mine = found.labels == label
        expected = rows[1 + label, : mine.sum()].numpy()
        np.testing.assert_allclose(found.scores[mine], expected[:, 0], rtol=1e-4)
        np.testing.assert_allclose(found.boxes[mine], (expected[:, 1:] * 300).clip(0, 300), atol=0.02)
    assert (np.diff(found.scores) <= 0).all()


def test_a_compiled_network_computes_the_same(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # without a C++ compiler
    compiled, expected = (Detector.of_network(*lively_network(), "cpu", "float32", compile=on) for on in (True, False))
    for sizes in (SIZES[:2], SIZES[:1]):
        images = [torch.from_numpy(image) for image in random_images(*sizes)]
        for output, other in zip(compiled.outputs(images), expected.outputs(images), strict=True):
            torch.testing.assert_close(output, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("precision", "capable", "layer", "count"), [
    ("float32", False, WinogradConv2d, 10), ("bfloat16", True, ConvReLU, 15), ("bfloat16", False, ConvReLU, 0),
])  # fmt: skip
def test_faster_layers_on_cpu_and_the_callers_network_stays(monkeypatch, precision, capable, layer, count):
    """On a CPU that does not compute in bfloat16, its convolutions have no fast form."""
    monkeypatch.setattr("inference.detector.cpu_computes_bfloat16", lambda: capable)
    net = CheckpointInfo().build().eval()  # at width 1, the convolutions are large enough for Winograd
    detector = Detector.of_network(net, CheckpointInfo(), "cpu", precision)
    assert [sum(type(module) is layer for module in one.modules()) for one in (detector.net, net)] == [count, 0]
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(("amx", "vendor", "dtype"), [
    (True, "GenuineIntel", torch.bfloat16), (False, "GenuineIntel", torch.float32),
    (False, "AuthenticAMD", torch.bfloat16),
])  # fmt: skip
def test_auto_is_bfloat16_only_if_that_is_faster(amx, vendor, dtype, monkeypatch):
    """On Intel, AVX512_BF16 alone is slower than float32."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    monkeypatch.setattr("platform.processor", lambda: f"AMD64 Family 25, {vendor}")
    assert choose_precision("auto", torch.device("cpu")) == dtype


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["vgg", "loc", "conf"])
def test_detections_are_always_finite(checkpoint, value, where):
    detector = Detector(checkpoint, device="cpu", precision="float32")
    with torch.no_grad():
        getattr(detector.net, where)[0].bias[0] = value
    (found,) = detector(random_images((64, 48)))
    assert np.isfinite(np.column_stack([found.boxes, found.scores])).all()


def test_boxes_are_clipped_unless_told_otherwise_and_huge_ones_dropped():
    net, info = make_network()

    def detect(**settings):
        return Detector.of_network(net, info, precision="float32", **settings)(random_images((200, 100)))[0]

    with torch.no_grad():
        net.loc[-1].bias[0] = -4.0  # the dog's box moves left, out of the image
    unclipped = detect(clip=False).boxes[0]
    assert unclipped[0] < -10
    np.testing.assert_allclose(detect().boxes[0], unclipped.clip(0, [200, 100, 200, 100]))
    with torch.no_grad():
        net.loc[-1].bias[2] = 400.0  # its width overflows
    assert detect(clip=False).names == ["person"]


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("std::bad_alloc"), MemoryError(), RuntimeError("shapes differ"),
], ids=repr)  # fmt: skip
def test_out_of_memory_names_the_batch_size_and_other_errors_stay(checkpoint, monkeypatch, error):
    def fail(x):
        raise error

    detector = Detector(checkpoint, device="cpu")
    monkeypatch.setattr(detector, "_raw", fail)
    with pytest.raises((InputError, RuntimeError)) as caught:
        detector(random_images(*SIZES[:3]))
    if str(error) == "shapes differ":
        assert caught.value is error
    else:
        assert re.fullmatch(r"out of memory; lower --batch_size \(now 3\).*", str(caught.value))


@pytest.mark.parametrize(("settings", "message"), [
    ({"engine": "tensorrt"}, "--engine tensorrt: unknown; use auto, torch or openvino"),
    ({"precision": "int8", "engine": "torch"}, "--precision int8.*--engine openvino"),
    ({"precision": "float8"}, "--precision float8"),
    ({"calibration": "here"}, "--calibration here"),
    ({"engine": "openvino", "compile": True}, "compile=True: only used"),
    ({"device": "gpu"}, "--device gpu"),
    ({"device": ""}, "--device"),
    ({"device": "cuda"}, "--device cuda: CUDA is not available"),
    ({"engine": "openvino", "device": "mps"}, "--engine openvino: .*CPU only; use --engine torch for --device mps"),
    ({"engine": "openvino"}, r"openvino is not installed; pip install -r requirements-engines\.txt"),
    ({"precision": "int8"}, "nncf is not installed; pip install"),  # which is OpenVINO's unless the engine is named
    ({}, r"none\.pth"),
])  # fmt: skip
def test_arguments_are_refused_before_the_weights_are_looked_for(settings, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "openvino", None if "engine" in settings else sys)
    monkeypatch.setitem(sys.modules, "nncf", None)
    refused(message, Detector, "none.pth", **settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_cuda_agrees_with_cpu(precision):
    images = random_images(*SIZES)
    on_cpu = Detector.of_network(*lively_network(), "cpu", "float32", 0.05)(images)
    on_cuda = Detector.of_network(*lively_network(), "cuda", precision, 0.05)(images)
    tolerance = 1e-2 if precision == "float32" else 3e-2  # TensorFloat-32; bfloat16 or float16
    for one, other in zip(on_cpu, on_cuda, strict=True):
        assert abs(len(one) - len(other)) <= 0.1 * len(one) + 2
        if len(one):
            assert other.scores[0] == pytest.approx(one.scores[0], abs=tolerance)
