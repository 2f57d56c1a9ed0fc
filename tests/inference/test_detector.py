"""Detector: images in, detections in pixels out."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from lively import lively_checkpoint, lively_network
from PIL import Image
from tiny import DOG, DOG_BOX, DOG_SCORE, PERSON, PERSON_SCORE, make_checkpoint, make_network
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from data import RGB_MEANS, transforms
from inference import Detector
from inference.winograd import WinogradConv2d
from utils.errors import InputError
from utils.images import write_image
from weights.catalogue import EMBEDDED
from weights.checkpoint import CheckpointInfo

SIZES = [(300, 300), (64, 48), (641, 357), (1, 1)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint that sees a dog and a person in every image."""
    return make_checkpoint(tmp_path / "tiny.pth")


@pytest.fixture
def lively(tmp_path):
    """A checkpoint with hundreds of detections that depend on the image."""
    return lively_checkpoint(tmp_path / "lively.pth")


def random_images(*sizes, seed=0):
    random = np.random.RandomState(seed)
    return [random.randint(0, 256, (height, width, 3), np.uint8) for width, height in sizes]


def test_boxes_are_in_pixels_of_each_image(checkpoint):
    detections = Detector(checkpoint, device="cpu", precision="float32")(random_images(*SIZES))
    assert len(detections) == len(SIZES)
    for (width, height), found in zip(SIZES, detections, strict=True):
        assert found.names == ["dog", "person"]
        assert found.labels.tolist() == [DOG, PERSON]
        np.testing.assert_allclose(found.scores, [DOG_SCORE, PERSON_SCORE], atol=1e-3)
        np.testing.assert_allclose(found.boxes[0], np.multiply(DOG_BOX, [width, height, width, height]), rtol=1e-4)
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.labels.dtype == np.int64
        assert len(found) == 2
    assert found.of_classes([PERSON]).names == ["person"]
    assert found.of_classes([PERSON]).boxes.shape == (1, 4)
    assert len(found.of_classes([0])) == 0


def test_arrays_pil_images_and_paths_may_be_mixed(lively, tmp_path):
    detector = Detector(lively, "cpu", "float32", 0.05)
    image = random_images((40, 30))[0]
    write_image(tmp_path / "a.png", image)
    transparent = Image.fromarray(np.dstack([image, np.full(image.shape[:2], 9, np.uint8)]))
    read_only = image.copy()
    read_only.setflags(write=False)
    view = np.repeat(image, 2, axis=1)[:, ::2]
    expected, *others = detector(
        [image, Image.fromarray(image), transparent, tmp_path / "a.png", str(tmp_path / "a.png"), read_only, view]
    )
    assert len(expected) > 50
    for found in others:
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_array_equal(image, read_only)
    (gray,) = detector([Image.fromarray(image[..., 0])])
    assert len(gray) > 50


def test_other_input_is_refused(checkpoint, tmp_path):
    detector = Detector(checkpoint, device="cpu")
    assert detector([]) == []
    image = random_images((9, 9))[0]
    for single in (image, Image.fromarray(image), "a.png", tmp_path):
        with pytest.raises(TypeError, match=r"a list of images, found \w+; use detector\(\[image\]\)"):
            detector(single)
    for item in (None, 3, b"a.png", [[0]]):
        with pytest.raises(TypeError, match=f"an array, a tensor, a PIL image or a path, found {type(item).__name__}"):
            detector([image, item])
    for array in (image[0], image[..., :2], image.astype(float), image[:0]):
        with pytest.raises(ValueError, match=r"uint8 RGB \[H, W, 3\], found"):
            detector([array])
    with pytest.raises(ValueError, match=r"uint8 RGB \[3, H, W\], found"):
        detector([torch.zeros(9, 9, 3, dtype=torch.uint8)])
    with pytest.raises(InputError, match=r"none\.png"):
        detector([tmp_path / "none.png"])


def test_threshold_and_limits(checkpoint, lively):
    assert Detector(checkpoint, device="cpu", threshold=0.8)(random_images((9, 9)))[0].names == ["dog"]
    few = Detector(lively, device="cpu", threshold=0.01, top_k=3)(random_images((300, 300)))[0]
    assert 0 < np.bincount(few.labels).max() <= 3
    assert len(Detector(lively, device="cpu", threshold=0.01, keep_top_k=5)(random_images((300, 300)))[0]) == 5
    with pytest.raises(ValueError, match=r"\[0, 1\), not 1"):
        Detector(checkpoint, device="cpu", threshold=1)


def test_the_checkpoint_may_have_its_own_threshold():
    net, info = make_network()
    assert Detector.of_network(net, info).threshold == 0.6
    object.__setattr__(info, "threshold", 0.25)
    assert Detector.of_network(net, info).threshold == 0.25
    assert Detector.of_network(net, info, threshold=0.0).threshold == 0


def test_rows_are_those_of_the_network(lively):
    """The Detector finds what net(x) finds on an input made by hand."""
    detector = Detector(lively, device="cpu", precision="float32", threshold=0.01)
    image = np.kron(random_images((10, 10))[0], np.ones((30, 30, 1), np.uint8))
    x = torch.from_numpy(image - np.array(RGB_MEANS, np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        rows = detector.net(x)[0]
    (found,) = detector([image])
    assert len(found) == int((rows[..., 0] > 0).sum()) > 100
    for label in range(20):
        mine = found.labels == label
        expected = rows[1 + label, : mine.sum()].numpy()
        np.testing.assert_allclose(found.scores[mine], expected[:, 0], rtol=1e-4)
        np.testing.assert_allclose(found.boxes[mine], (expected[:, 1:] * 300).clip(0, 300), atol=0.02)
    assert (np.diff(found.scores) <= 0).all()


def assert_same(found, expected, share=0.99):
    """Each detection has its like on the other side, in any order: rounding decides between close scores."""
    one, other = (
        np.column_stack([rows.labels * 1e4, rows.scores * 1e3, rows.boxes]).reshape(-1, 6) for rows in (found, expected)
    )
    distance = np.abs(one[:, None] - other[None]).max(axis=-1)  # [N, M]
    assert len(one) > 50
    assert (distance.min(axis=1) < 0.2).mean() >= share
    assert (distance.min(axis=0) < 0.2).mean() >= share


@pytest.fixture
def calm():
    """(net, info) whose scores differ, so that rounding decides little."""
    net, info = lively_network()
    with torch.no_grad():
        for head in net.conf:
            head.weight.mul_(0.05)
    return net, info


def test_a_batch_equals_its_singles(calm):
    detector = Detector.of_network(*calm, "cpu", "float32", threshold=0.05, keep_top_k=100)
    images = random_images(*SIZES)
    for found, image in zip(detector(images), images, strict=True):
        assert_same(found, detector([image])[0])


def test_threads_may_share_a_detector(calm):
    detector = Detector.of_network(*calm, "cpu", "float32", threshold=0.05, keep_top_k=100)
    batches = [random_images(*SIZES[: 1 + seed % 2], seed=seed) for seed in range(8)]
    expected = [detector(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        for found, alone in zip(pool.map(detector, batches), expected, strict=True):
            for one, other in zip(found, alone, strict=True):
                assert_same(one, other)


def test_a_compiled_network_finds_the_same(calm, monkeypatch):
    expected = Detector.of_network(*calm, "cpu", "float32", threshold=0.05, keep_top_k=100)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # without a C++ compiler
    compiled = Detector.of_network(*calm, "cpu", "float32", threshold=0.05, keep_top_k=100, compile=True)
    for batch in (random_images(*SIZES[:2]), random_images(*SIZES[:1])):
        for found, other in zip(compiled(batch), expected(batch), strict=True):
            assert_same(found, other)


def test_channel_order_belongs_to_the_checkpoint(monkeypatch):
    inputs = {}
    for order in ("RGB", "BGR"):
        detector = Detector.of_network(*make_network(channel_order=order), "cpu", "float32")
        raw = detector._raw
        monkeypatch.setattr(detector, "_raw", lambda x, raw=raw, order=order: (inputs.update({order: x}), raw(x))[1])
        detector(random_images((300, 300)))
    expected = torch.from_numpy(random_images((300, 300))[0] - np.array(RGB_MEANS, np.float32)).permute(2, 0, 1)[None]
    torch.testing.assert_close(inputs["RGB"], expected)
    torch.testing.assert_close(inputs["BGR"], expected.flip(1))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_comes_close(checkpoint, precision):
    detector = Detector(checkpoint, device="cpu", precision=precision)
    assert detector.dtype == getattr(torch, precision)
    (found,) = detector(random_images((640, 480)))
    assert found.names == ["dog", "person"]
    assert found.boxes.dtype == found.scores.dtype == np.float32
    np.testing.assert_allclose(found.boxes[0], np.multiply(DOG_BOX, [640, 480, 640, 480]), rtol=1e-4)
    np.testing.assert_allclose(found.scores, [DOG_SCORE, PERSON_SCORE], atol=0.02)


def test_float32_on_cpu_uses_winograd_and_the_callers_network_stays():
    net = CheckpointInfo().build().eval()  # at width 1, the convolutions are large enough
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    detector = Detector.of_network(net, CheckpointInfo(), "cpu", "float32")
    assert sum(isinstance(module, WinogradConv2d) for module in detector.net.modules()) == 10
    assert detector.net.state_dict().keys() == before.keys()
    Detector.of_network(net, CheckpointInfo(), "cpu", "bfloat16")
    assert not any(isinstance(module, WinogradConv2d) for module in net.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["vgg", "loc", "conf"])
def test_detections_are_always_finite(checkpoint, value, where):
    detector = Detector(checkpoint, device="cpu", precision="float32")
    with torch.no_grad():
        getattr(detector.net, where)[0].bias[0] = value
    (found,) = detector(random_images((64, 48)))
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()


def test_clip_and_huge_boxes():
    """Boxes are clipped unless clip=False; corners beyond all numbers are no boxes."""
    net, info = make_network()
    with torch.no_grad():
        net.loc[-1].bias[0] = -4.0  # the dog's box moves left, out of the image
    (box,) = Detector.of_network(net, info, precision="float32", threshold=0.9)(random_images((200, 100)))[0].boxes
    (unclipped,) = Detector.of_network(net, info, precision="float32", threshold=0.9, clip=False)(
        random_images((200, 100))
    )[0].boxes
    assert unclipped[0] < -10
    np.testing.assert_allclose(box, unclipped.clip(0, [200, 100, 200, 100]))
    with torch.no_grad():
        net.loc[-1].bias[2] = 400.0
    found = Detector.of_network(net, info, precision="float32", clip=False)(random_images((200, 100)))[0]
    assert found.names == ["person"]


OUT_OF_MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "PyTorch on CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    "NumPy": MemoryError(),
    "C++": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_names_the_batch_size(checkpoint, monkeypatch, kind):
    detector = Detector(checkpoint, device="cpu")

    def refuse(x):
        raise OUT_OF_MEMORY[kind]

    monkeypatch.setattr(detector, "_raw", refuse)
    with pytest.raises(InputError, match="out of memory with batch size 3; lower --batch_size") as caught:
        detector(random_images(*SIZES[:3]))
    assert "\n" not in str(caught.value)


def test_other_errors_are_left_alone(checkpoint, monkeypatch):
    detector = Detector(checkpoint, device="cpu")
    monkeypatch.setattr(detector, "_raw", lambda x: x.view(7, 7))
    with pytest.raises(RuntimeError, match="shape"):
        detector(random_images((9, 9)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_device_path_stays_on_cuda_and_does_not_synchronize(precision, monkeypatch):
    """With fake CUDA tensors, a tensor on another device raises, and so does a shape that depends on data."""
    # The means are cached per device, and fake tensors must not stay in that cache.
    monkeypatch.setattr(transforms, "_means_on", lambda device: torch.zeros(3, 1, 1, device=device), raising=False)
    info = CheckpointInfo(width=1 / 16, channel_order="BGR")
    detector = Detector.of_network(info.build("train"), info, "cpu", precision)
    with FakeTensorMode(), torch.inference_mode():
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda:0")
            for name, tensor in (*detector.net.named_parameters(), *detector.net.named_buffers())
        }
        detector._raw = lambda x: functional_call(detector.net, state, x)[:2]
        images = [torch.empty(height, width, 3, dtype=torch.uint8, device="cuda:0") for width, height in SIZES]
        loc, probabilities = detector.outputs([*images, images[0].new_empty(1080, 1920, 3)])
    assert loc.shape == (5, 8732, 4)
    assert probabilities.shape == (5, 8732, 21)
    assert loc.dtype == probabilities.dtype == torch.float32
    assert loc.device == probabilities.device == torch.device("cuda:0")


def test_description_and_attributes(checkpoint):
    detector = Detector(checkpoint, device="cpu", precision="float32")
    assert detector.class_names[DOG] == "dog"
    assert detector.info.mAP == 0.123
    assert (detector.device, detector.dtype, detector.engine, detector.size) == (
        torch.device("cpu"),
        torch.float32,
        "torch",
        300,
    )
    assert detector.description == f"tiny.pth, {detector.info.config.name}, 20 classes, on cpu in float32"
    assert "network without a file" in Detector.of_network(*make_network()).description


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "tensorrt"}, "--engine tensorrt: unknown; use auto, torch or openvino"),
        ({"precision": "int8", "engine": "torch"}, "--precision int8.*--engine openvino"),
        ({"precision": "float8"}, "--precision float8"),
        ({"calibration": "here"}, "--calibration here"),
        ({"engine": "openvino", "compile": True}, "--compile"),
        ({"device": "gpu"}, "--device gpu"),
        ({"device": ""}, "--device"),
        ({"weights": "none.pth"}, r"none\.pth"),
    ],
)
def test_arguments_that_are_refused(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        Detector(**{"weights": EMBEDDED, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_cuda_is_refused_without_a_device(checkpoint):
    with pytest.raises(InputError, match="--device cuda"):
        Detector(checkpoint, device="cuda")
    assert Detector(checkpoint, device="auto").device == torch.device("cpu")


def test_global_state_stays(checkpoint):
    def state():
        return (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_num_threads(),
        )

    before = state()
    Detector(checkpoint, device="cpu")(random_images((64, 48)))
    assert state() == before


@needs_cuda
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_cuda_agrees_with_cpu(lively, precision):
    images = random_images(*SIZES)
    on_cpu = Detector(lively, device="cpu", precision="float32", threshold=0.05)(images)
    on_cuda = Detector(lively, device="cuda", precision=precision, threshold=0.05)(images)
    tolerance = 1e-2 if precision == "float32" else 3e-2  # TensorFloat-32; bfloat16 or float16
    for one, other in zip(on_cpu, on_cuda, strict=True):
        assert abs(len(one) - len(other)) <= 0.1 * len(one) + 2
        if len(one):
            assert other.scores[0] == pytest.approx(one.scores[0], abs=tolerance)
