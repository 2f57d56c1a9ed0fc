"""The way over a GPU: on the CPU its arithmetic, and where there is CUDA the whole of it."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from lively import lively_network

from data import transforms
from inference import Detector, device_path
from inference.device_path import DevicePath, resize, shares

SIZES = [(640, 360), (640, 360), (300, 300), (64, 48), (1, 1), (1001, 700), (640, 360)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def frames(*sizes):
    """Smooth random pictures, as photographs are."""
    random = np.random.RandomState(0)
    return [cv2.resize(random.randint(0, 256, (9, 9, 3), np.uint8), size) for size in sizes]


def over(detector):
    """The detector again, with the way over a device."""
    other = Detector.of_network(detector.net, detector.info, detector.device, "float32", threshold=0.05)
    other._rows_of = DevicePath(other._run, other._detect, other._priors, other.size)
    return other


@pytest.fixture(scope="module")
def plain():
    return Detector.of_network(*lively_network(), precision="float32", threshold=0.05)


def assert_same(found, expected, most=1.0):
    """The same detections, up to what a level of rounding in a pixel may change."""
    assert sum(map(len, expected)) > 100
    for one, other in zip(found, expected, strict=True):
        pairs = min(len(one), len(other))
        assert abs(len(one) - len(other)) <= 0.02 * len(other)
        difference = np.abs(one.scores[:pairs] - other.scores[:pairs])  # a random network enlarges what differs
        assert difference.max() <= 0.05 * most
        assert difference.mean() <= 0.01 * most


@pytest.mark.parametrize(
    "size",
    [
        (300, 300),
        (500, 375),
        (640, 360),
        (333, 500),
        (601, 601),
        (768, 432),
        (1920, 1080),
        (1000, 600),
        (7, 900),
        (1, 1),
    ],
)
def test_resizes_as_opencv_does(size):
    width, height = size
    pictures = np.random.RandomState(1).randint(0, 256, (2, height, width, 3), np.uint8)
    resized = resize(torch.from_numpy(pictures), 300)
    assert resized.dtype == torch.uint8
    expected = np.stack([transforms.resize(picture, 300) for picture in pictures])
    difference = np.abs(resized.numpy().astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.2  # OpenCV rounds its shares to 11 bits


@pytest.mark.parametrize("by_area", [False, True])
@pytest.mark.parametrize("length", [300, 301, 450, 700, 1080])
def test_shares_add_up(length, by_area):
    matrix = shares(length, 300, by_area)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    assert (matrix >= 0).all()
    centres = (matrix * np.arange(length)).sum(axis=1)
    # An old pixel of which a part is covered counts as if it were at its centre.
    np.testing.assert_allclose(centres, (np.arange(300) + 0.5) * length / 300 - 0.5, atol=0.2 if by_area else 1e-3)


def test_finds_what_the_plain_way_finds(plain):
    assert_same(over(plain)(frames(*SIZES)), plain(frames(*SIZES)))


def test_pictures_of_the_networks_size_are_not_touched(plain):
    pictures = frames((300, 300), (300, 300))
    for one, other in zip(over(plain)(pictures), plain(pictures), strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_many_frames_go_in_portions(plain, monkeypatch):
    path = over(plain)
    whole = path._rows_of(frames(*SIZES))
    monkeypatch.setattr(device_path, "PORTION", 640 * 360 * 3 + 1)
    np.testing.assert_array_equal(path._rows_of(frames(*SIZES)), whole)


def test_results_outlive_the_next_call(plain):
    path = over(plain)
    first = path._rows_of(frames((300, 300)))
    before = first.copy()
    path._rows_of(frames((64, 48), (64, 48)))
    np.testing.assert_array_equal(first, before)


def test_goes_on_where_nms_needs_more_rounds(plain, monkeypatch):
    path = over(plain)
    expected = path._rows_of(frames(*SIZES))
    fewer = path._detect.without_a_look
    asked = []

    def hurried(*tensors):
        rows, settled = fewer(*tensors, rounds=1)
        asked.append(bool(settled))
        return rows, settled

    monkeypatch.setattr(path._detect, "without_a_look", hurried)
    np.testing.assert_array_equal(path._rows_of(frames(*SIZES)), expected)
    assert asked == [False]


def test_no_frames(plain):
    assert over(plain)([]) == []


@needs_cuda
class TestOnCuda:
    @pytest.fixture(scope="class")
    def cuda(self):
        return Detector.of_network(*lively_network(), device="cuda", precision="float32", threshold=0.05)

    @pytest.mark.parametrize("batch", [1, 3, 16, 20])
    def test_finds_what_the_cpu_finds(self, cuda, plain, batch):
        """Three times: as it comes, recorded as a graph, and replayed with other pictures in between."""
        pictures = (frames(*SIZES) * 3)[:batch]
        expected = plain(pictures)
        for _ in range(3):
            assert_same(cuda(pictures), expected, most=2) if batch > 1 else cuda(pictures)
            cuda([255 - picture for picture in pictures])
        recorded = isinstance(cuda._rows_of._graphs.get(batch), device_path.Graph)
        assert recorded == (batch <= device_path.GRAPHED)

    def test_from_several_threads(self, cuda):
        batches = [frames(*SIZES[start:]) for start in range(5)]
        for batch in batches * 2:  # so that all of what follows replays the same graphs
            cuda(batch)
        expected = [cuda(batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            for found, alone in zip(pool.map(cuda, batches * 4), expected * 4, strict=True):
                for one, other in zip(found, alone, strict=True):
                    np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)

    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_half_precision(self, plain, precision):
        net, info = lively_network()
        half = Detector.of_network(net, info, device="cuda", precision=precision, threshold=0.05)
        for one, other in zip(half(frames(*SIZES)), plain(frames(*SIZES)), strict=True):
            assert abs(len(one) - len(other)) <= max(3, 0.1 * len(other))
