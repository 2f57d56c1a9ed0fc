"""Frames in several threads: in order, few at a time, and none forgotten at the end."""

import threading
import time
from contextlib import closing
from itertools import count

import cv2
import numpy as np
import pytest
import torch
from inference.planar import PlanarFrame
from lively import lively_network
from tiny import DOG_BOX, make_network

from inference import Detector
from inference.pipeline import SLACK, detect, enlarged, in_order, share_threads
from utils.errors import InputError


def at_work():
    """The threads of a pipeline that are alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("work")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not at_work()
    yield
    assert not at_work()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers):
    pauses = np.random.RandomState(0).uniform(0, 0.004, 60)
    done = []

    def work(item):
        time.sleep(pauses[item])
        done.append(item)
        return item, threading.current_thread()

    results = list(in_order(work, range(60), workers))
    assert [item for item, _ in results] == list(range(60))
    assert len({thread for _, thread in results}) <= workers
    if workers > 1:
        assert done != sorted(done)  # else the order proves nothing


def test_workers_work_at_the_same_time():
    """Each item waits until as many are in work as there are workers: without threads, none would end."""
    together = threading.Barrier(3, timeout=20)
    assert len(list(in_order(lambda item: together.wait(), range(12), 3))) == 12


@pytest.mark.parametrize("workers", [1, 3])
def test_few_items_are_under_way(workers):
    taken, handed_on, most = 0, 0, 0

    def items():
        nonlocal taken, most
        for item in range(40):
            taken += 1
            most = max(most, taken - handed_on)
            yield item

    for _ in in_order(lambda item: item, items(), workers):
        time.sleep(0.002)  # slower than the workers
        most = max(most, taken - handed_on)
        handed_on += 1
    assert (taken, handed_on) == (40, 40)
    assert most == workers + SLACK


def test_fewer_items_than_workers():
    assert list(in_order(str, [1], 4)) == ["1"]
    assert list(in_order(str, [], 4)) == []


def test_an_error_comes_in_its_turn_and_as_it_is():
    error = InputError("frame 7 can't be used; leave it out")

    def work(item):
        if item == 7:
            raise error
        time.sleep(0.01)  # those before it end later
        return item

    results = []
    with pytest.raises(InputError) as caught:
        results.extend(in_order(work, range(40), 3))
    assert caught.value is error
    assert results == list(range(7))


def test_an_error_of_the_source_comes_through():
    def items():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(in_order(str, items(), 2))


def test_closing_early_ends_the_work():
    started = []

    def work(item):
        started.append(item)
        time.sleep(0.005)
        return item

    with closing(in_order(work, count(), 3)) as results:
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert not at_work()
    assert 5 <= len(started) <= 5 + 3 + SLACK
    before = len(started)
    time.sleep(0.05)
    assert len(started) == before


def test_an_interruption_of_whoever_takes_the_results_ends_the_work():
    with pytest.raises(KeyboardInterrupt), closing(in_order(lambda item: item, count(), 2)) as results:
        for _ in results:
            raise KeyboardInterrupt


def test_threads_of_pytorch_and_opencv_are_as_before():
    def default():
        """What a thread sees that never asked for a number."""
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return seen[0]

    ours, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(3)
        cv2.setNumThreads(4)
        inside = list(in_order(lambda item: (torch.get_num_threads(), cv2.getNumThreads()), range(8), 2, threads=1))
        assert set(inside) == {(1, 1)}
        assert (torch.get_num_threads(), default(), cv2.getNumThreads()) == (3, 3, 4)
        with closing(in_order(str, count(), 2, threads=2)) as results:
            next(results)
            assert torch.get_num_threads() == 3
        assert (torch.get_num_threads(), default(), cv2.getNumThreads()) == (3, 3, 4)
    finally:
        torch.set_num_threads(ours)
        cv2.setNumThreads(cv2_threads)


@pytest.mark.parametrize(("threads", "shared"), [(1, (1, 1)), (2, (2, 1)), (8, (8, 1)), (16, (8, 2)), (20, (8, 2))])
def test_threads_are_shared_out(monkeypatch, threads, shared):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert share_threads(torch.device("cpu")) == shared
    assert share_threads(torch.device("cuda")) == (2, threads)
    assert share_threads(torch.device("mps")) == (1, threads)


@pytest.fixture(scope="module")
def lively():
    """A Detector whose boxes and scores depend on what it sees."""
    return Detector.of_network(*lively_network(), precision="float32", threshold=0.05)


def noisy_frames(number, size=(80, 60)):
    """PlanarFrames, no two alike."""
    random = np.random.RandomState(0)
    frames = [PlanarFrame(size, "bt601") for _ in range(number)]
    for frame in frames:
        frame.y[...] = cv2.resize(random.randint(16, 235, (6, 8)).astype(np.uint8), size)
        frame.u[...], frame.v[...] = random.randint(80, 176, 2)
    return frames


def test_detections_are_those_of_one_frame_after_the_other(lively):
    """To the bit: nothing that a frame's result depends on is shared between the threads."""
    batches = [[frame] for frame in noisy_frames(24)]
    expected = [detect(lively, batch) for batch in batches]
    found = list(in_order(lambda batch: detect(lively, batch), batches, 4))
    assert len({one.scores.tobytes() for (one,) in expected}) == 24  # they do depend on the frame
    for (one,), (other,) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        assert one.names == other.names


def test_a_planar_frame_gives_what_its_rgb_form_gives(lively):
    frames = noisy_frames(6, (640, 360))
    for planar, plain in zip(detect(lively, frames), detect(lively, [frame.rgb() for frame in frames]), strict=True):
        assert len(plain) > 0
        best = min(len(plain), 5)
        np.testing.assert_allclose(planar.scores[:best], plain.scores[:best], atol=0.02)
        assert abs(len(planar) - len(plain)) <= max(2, 0.1 * len(plain))


def test_boxes_are_in_pixels_of_the_frame():
    detector = Detector.of_network(*make_network(), precision="float32", threshold=0.9)
    rgb = np.full((50, 30, 3), 90, np.uint8)
    for found, (width, height) in zip(
        detect(detector, [*noisy_frames(1, (1000, 200)), rgb]), [(1000, 200), (30, 50)], strict=True
    ):
        np.testing.assert_allclose(found.boxes, [np.multiply(DOG_BOX, [width, height] * 2)], rtol=1e-3)
        assert found.boxes.dtype == np.float32


def test_boxes_do_not_leave_the_frame():
    detector = Detector.of_network(*make_network(), precision="float32", threshold=0.9)
    (found,) = detect(detector, noisy_frames(1))
    full = type(found)(np.array([[0, 0, 300, 300]], np.float32), found.scores, found.labels, found.names)
    for size in ((1919, 1079), (77, 33), (3840, 2160)):
        assert enlarged(full, 300, size).boxes.tolist() == [[0, 0, *size]]
