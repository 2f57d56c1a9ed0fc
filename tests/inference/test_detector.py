"""Detector: frames in, detections in pixels out."""

import numpy as np
import pytest
import torch
from lively import lively_checkpoint, lively_network
from tiny import DOG, DOG_BOX, DOG_SCORE, PERSON, PERSON_SCORE, make_checkpoint

from data import RGB_MEANS, BaseTransform
from inference import Detector, devices
from utils.errors import InputError


@pytest.fixture
def checkpoint(tmp_path):
    return make_checkpoint(tmp_path / "tiny.pth")


@pytest.fixture
def lively(tmp_path):
    """A checkpoint that sees many different things, depending on the picture."""
    return lively_checkpoint(tmp_path / "lively.pth")


def pictures(*sizes, seed=0):
    random = np.random.RandomState(seed)
    return [random.randint(0, 256, (height, width, 3), np.uint8) for width, height in sizes]


SIZES = [(300, 300), (64, 48), (641, 357), (1, 1)]


def test_boxes_are_pixels_of_each_picture(checkpoint):
    found = Detector(checkpoint, device="cpu", precision="float32")(pictures(*SIZES))
    assert len(found) == len(SIZES)
    for (width, height), one in zip(SIZES, found, strict=True):
        assert one.names == ["dog", "person"]
        assert one.labels.tolist() == [DOG, PERSON]
        np.testing.assert_allclose(one.scores, [DOG_SCORE, PERSON_SCORE], atol=1e-3)
        np.testing.assert_allclose(one.boxes[0], np.multiply(DOG_BOX, [width, height, width, height]), rtol=1e-4)
        assert one.boxes.dtype == one.scores.dtype == np.float32
        assert one.labels.dtype == np.int64
        assert len(one) == 2


def test_threshold_and_top_k(checkpoint, lively):
    assert Detector(checkpoint, device="cpu", threshold=0.8)(pictures((9, 9)))[0].names == ["dog"]
    assert len(Detector(checkpoint, device="cpu", threshold=0.99)(pictures((9, 9)))[0]) == 0
    few = Detector(lively, device="cpu", threshold=0.01, top_k=3)(pictures((300, 300)))[0]
    assert 0 < np.bincount(few.labels).max() <= 3
    assert len(Detector(lively, device="cpu", threshold=0.01, keep_top_k=5)(pictures((300, 300)))[0]) == 5


def test_it_finds_what_the_network_finds(lively):
    """The same rows as net(x) on BaseTransform's input, as a course script computes them."""
    detect = Detector(lively, device="cpu", precision="float32", threshold=0.01)
    (frame,) = pictures((333, 222))
    net = detect.net
    x = torch.from_numpy(BaseTransform(net.size, RGB_MEANS)(frame)[0]).permute(2, 0, 1)[None]
    with torch.no_grad():
        rows = net(x)[0]
    (found,) = detect([frame])
    assert len(found) == int((rows[..., 0] > 0).sum()) > 100
    for label in range(20):
        mine = found.labels == label
        expected = rows[1 + label, : mine.sum()].numpy()
        np.testing.assert_allclose(found.scores[mine], expected[:, 0], rtol=1e-4)
        scaled = np.clip(expected[:, 1:] * [333, 222, 333, 222], 0, [333, 222, 333, 222])
        np.testing.assert_allclose(found.boxes[mine], scaled, atol=0.02)
    assert (np.diff(found.scores) <= 0).all()


def test_a_batch_equals_its_singles():
    """But for the last digits of the convolutions' sums, on which a score next to the threshold may depend."""
    net, info = lively_network()
    with torch.no_grad():
        for head in net.conf:
            head.weight.mul_(0.05)  # else hundreds of scores are 1, and chance decides which of them are kept
    detect = Detector.of_network(net, info, "cpu", "float32", threshold=0.05, keep_top_k=100)
    frames = pictures(*SIZES)
    for together, frame in zip(detect(frames), frames, strict=True):
        (alone,) = detect([frame])
        one, other = (
            np.column_stack([found.labels * 1e4, found.scores * 1e3, found.boxes]) for found in (together, alone)
        )
        apart = np.abs(one[:, None] - other[None]).max(axis=-1)  # [N, M]
        assert len(one) > 50
        assert (apart.min(axis=1) < 0.2).mean() > 0.99
        assert (apart.min(axis=0) < 0.2).mean() > 0.99


def test_the_channel_order_belongs_to_the_checkpoint(tmp_path, lively, monkeypatch):
    """A BGR checkpoint is given what an RGB one is, channels swapped."""
    inputs = {}
    for order in ("RGB", "BGR"):
        detect = Detector(
            make_checkpoint(tmp_path / f"{order}.pth", channel_order=order), device="cpu", precision="float32"
        )
        raw = detect.net.raw
        monkeypatch.setattr(detect.net, "raw", lambda x, raw=raw, order=order: (inputs.update({order: x}), raw(x))[1])
        detect(pictures((300, 300)))
    expected = torch.from_numpy(pictures((300, 300))[0] - np.array(RGB_MEANS, np.float32)).permute(2, 0, 1)[None]
    torch.testing.assert_close(inputs["RGB"], expected)
    torch.testing.assert_close(inputs["BGR"], expected.flip(1))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_comes_close(checkpoint, precision):
    detect = Detector(checkpoint, device="cpu", precision=precision)
    assert detect.dtype == getattr(torch, precision)
    (found,) = detect(pictures((640, 480)))
    assert found.names == ["dog", "person"]
    assert found.boxes.dtype == found.scores.dtype == np.float32
    np.testing.assert_allclose(found.boxes[0], np.multiply(DOG_BOX, [640, 480, 640, 480]), rtol=1e-4)
    np.testing.assert_allclose(found.scores, [DOG_SCORE, PERSON_SCORE], atol=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["vgg", "loc", "conf"])
def test_a_network_that_is_not_finite_finds_nothing_false(checkpoint, value, where):
    detect = Detector(checkpoint, device="cpu", precision="float32")
    with torch.no_grad():
        getattr(detect.net, where)[0].bias[0] = value
    (found,) = detect(pictures((64, 48)))
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()


def test_no_frames_no_detections(checkpoint):
    assert Detector(checkpoint, device="cpu")([]) == []


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_frame_is_refused(checkpoint, frame):
    with pytest.raises(ValueError, match="uint8 RGB"):
        Detector(checkpoint, device="cpu")([frame])


def test_frames_may_be_views_and_stay_as_they_are(checkpoint):
    (frame,) = pictures((64, 48))
    before = frame.copy()
    detect = Detector(checkpoint, device="cpu")
    assert detect([frame[::-1, ::2]])[0].names == ["dog", "person"]
    frame.setflags(write=False)
    detect([frame])
    np.testing.assert_array_equal(frame, before)


def test_of_classes(checkpoint):
    (found,) = Detector(checkpoint, device="cpu")(pictures((64, 48)))
    assert found.of_classes([PERSON]).names == ["person"]
    assert found.of_classes([PERSON]).boxes.shape == (1, 4)
    assert len(found.of_classes([0])) == 0


def test_what_it_says_of_itself(checkpoint):
    detect = Detector(checkpoint, device="cpu", precision="float32")
    assert detect.class_names[DOG] == "dog"
    assert detect.info.mAP == 0.123
    assert detect.device == torch.device("cpu")
    assert detect.dtype == torch.float32
    assert all(
        parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in detect.net.parameters()
        if parameter.dim() == 4
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
def test_cuda_where_there_is_none(checkpoint):
    with pytest.raises(InputError, match="--device cuda"):
        Detector(checkpoint, device="cuda")
    assert Detector(checkpoint, device="auto").device == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "xpu", "cpu0", ""])
def test_unknown_devices(checkpoint, device):
    with pytest.raises(InputError, match="--device"):
        Detector(checkpoint, device=device)


def test_precision(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda has=has: has)
        assert devices.choose_precision("auto", cpu) == dtype
    for has, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert devices.choose_precision("auto", cuda) == dtype
    assert devices.choose_precision("float32", cuda) == torch.float32
    with pytest.raises(InputError, match="--precision"):
        devices.choose_precision("float8", cpu)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth"):
        Detector(tmp_path / "none.pth", device="cpu")


def test_the_global_state_stays(checkpoint):
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark, torch.get_num_threads()
    Detector(checkpoint, device="cpu")(pictures((64, 48)))
    assert before == (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_cuda_agrees_with_the_cpu(lively, precision):
    frames = pictures(*SIZES)
    here = Detector(lively, device="cpu", precision="float32", threshold=0.05)(frames)
    there = Detector(lively, device="cuda", precision=precision, threshold=0.05)(frames)
    tolerance = 1e-2 if precision == "float32" else 3e-2  # convolutions in TensorFloat-32; bfloat16 or float16
    for one, other in zip(here, there, strict=True):
        if len(one):
            assert abs(len(one) - len(other)) <= 0.1 * len(one) + 2
            assert other.scores[0] == pytest.approx(one.scores[0], abs=tolerance)


def test_corners_beyond_all_numbers_are_no_boxes(checkpoint):
    detect = Detector(checkpoint, device="cpu", precision="float32", clip=False)
    rows = np.zeros((detect.net.num_classes, 3, 5), np.float32)
    rows[1] = [[0.9, -1e38, 0, 3e38, 1], [0.8, 0, 0, np.inf, 1], [0.7, -0.5, 0, 0.5, 1]]
    found = detect._in_pixels(rows, (100, 200, 3))
    np.testing.assert_array_equal(found.boxes, [[-100, 0, 100, 100]])
    np.testing.assert_array_equal(found.scores, np.float32([0.7]))
