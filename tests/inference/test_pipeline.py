"""Frames and images in several threads: in order, few at a time, with the results of the Detector called one by one."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from clip_images import CLIP, make_clip_images
from media import X264, ffmpeg

from inference import Detector
from inference.drawing import draw_detections
from inference.pipeline import SLACK, Pipeline, in_order, share_threads
from inference.video import VideoReader
from utils.images import read_image, write_image
from weights.catalogue import EMBEDDED


@pytest.fixture(autouse=True)
def three_threads():
    """Three workers on any machine. In the end none is left, and the thread counts are as before."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(3)
    cv2.setNumThreads(4)
    yield
    with ThreadPoolExecutor(1) as pool:  # PyTorch keeps a count for each thread; a new one has the default
        assert (pool.submit(torch.get_num_threads).result(), cv2.getNumThreads()) == (3, 4)
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("work")]


@pytest.mark.parametrize("workers", [1, 5])
def test_results_come_in_order_from_all_workers_and_few_are_in_progress(workers):
    together, done, taken, most = threading.Barrier(workers, timeout=60), [], [], 0

    def work(item):
        together.wait()  # without threads side by side, none would return
        time.sleep(0.004 * (-item % workers))
        done.append(item)
        return item, torch.get_num_threads(), cv2.getNumThreads()

    items = (taken.append(item) or item for item in range(40))
    for received, result in enumerate(in_order(work, items, workers, threads=2)):
        assert result == (received, 2, 2)
        most = max(most, len(taken) - received)
    assert (most, len(taken)) == (workers + SLACK, 40)
    assert workers == 1 or done != sorted(done)  # else the order proves nothing


def test_an_error_is_raised_in_its_items_turn_and_the_work_ends():
    results, started = [], []

    def work(item):
        started.append(item)
        time.sleep(0.01 * (item != 7))  # those before it end later
        return 1 / (item - 7)

    with pytest.raises(ZeroDivisionError):
        results.extend(in_order(work, count(), 3))
    assert (len(results), len(started) <= 8 + 3 + SLACK) == (7, True)


def test_threads_are_shared_among_workers(monkeypatch):
    with monkeypatch.context() as patch:  # ends before `three_threads` asks
        patch.setattr(torch, "get_num_threads", lambda: 20)
        assert [share_threads(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [(8, 2), (8, 1), (1, 20)]


@pytest.fixture(scope="module")
def detector():
    return Detector(EMBEDDED, "cpu", "float32", 0.4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Seven frames of the bundled clip, with a cat and people."""
    path = tmp_path_factory.mktemp("media") / "in.mp4"
    ffmpeg("-i", CLIP, "-vf", "select=not(mod(n\\,32)),setpts=N/25/TB", "-frames:v", 7, *X264, path)
    return path


@pytest.fixture
def run(detector, clip):
    """Run a Pipeline on the clip: its Summary, and [(frame, time, Detections, their place)]."""

    def run(reader=None, **settings):
        written, found = [], []
        writer = SimpleNamespace(write=lambda *frame_and_time: written.append(frame_and_time), seconds=0.5)
        pipeline = Pipeline(detector, on_result=lambda one, **where: found.append((one, where)), **settings)
        with VideoReader(clip) as video:
            summary = pipeline.video(reader or video, writer, "clip")
        return summary, [(*one, *other) for one, other in zip(written, found, strict=True)]

    return run


@pytest.mark.parametrize(("batch_size", "labels"), [(1, None), (3, None), (1, [14])])
def test_a_video_gives_what_its_frames_give(run, detector, clip, batch_size, labels):
    summary, results = run(batch_size=batch_size, labels=labels)
    names = []
    with VideoReader(clip) as reader:
        for index, (image, (frame, seconds, found, where)) in enumerate(zip(reader, results, strict=True)):
            (alone,) = detector([image])
            alone = alone.of_classes(labels) if labels else alone
            assert found.names == alone.names
            np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
            np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.05)
            draw_detections(image, found)
            np.testing.assert_array_equal(frame, image)
            assert (seconds, where) == (index / 25, {"file": "clip", "frame": index, "time": index / 25})
            names += found.names
    assert set(names) == {"person"} if labels else set(names) >= {"cat", "person"}
    assert (summary.images, summary.objects) == (7, {name: names.count(name) for name in names})
    objects = ", ".join(f"{name} {number}" for name, number in summary.objects.most_common())
    pattern = rf"7 frames in [\d.]+ s \(.* per second\)\nobjects: {objects}\nmilliseconds per frame: decode [\d.]+, "
    pattern += r"network [\d.]+, draw [\d.]+, encode 71\.4; they overlap \(.* on 3 threads\), the slowest is \w+"
    assert re.fullmatch(pattern, str(summary))


def test_a_run_ends_early_when_stopped_or_when_its_window_is_closed(run):
    display = SimpleNamespace(closed=False, show=(stop := []).append)
    summary, results = run(stop=stop, display=display, batch_size=2)
    assert summary.images == len(results) == len(stop) == 2  # the batch is finished
    display.show = lambda frame: setattr(display, "closed", True)
    assert run(display=display)[0].images == 1


def test_frames_of_a_camera_do_not_wait_for_a_worker(run):
    shown = []

    def timed(stop):
        for index in range(3):
            assert len(shown) == index  # the one before is shown already
            yield 0.1 * index, np.zeros((30, 40, 3), np.uint8)

    camera = SimpleNamespace(live=True, expected=None, seconds=0.0, timed=timed)
    run(camera, display=SimpleNamespace(closed=False, show=shown.append))
    assert len(shown) == 3


@pytest.mark.parametrize("place", ["read_image", "draw_detections", "Detector.outputs"])
def test_running_out_of_memory_is_an_input_error(detector, tmp_path, monkeypatch, place):
    def fail(*_):
        raise MemoryError

    write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    monkeypatch.setattr(f"inference.{'detector' if 'Detector' in place else 'pipeline'}.{place}", fail)
    pipeline = Pipeline(detector, draw=fail if "draw" in place else None)
    (error,) = pipeline.images([tmp_path / "a.png"], [tmp_path / "b.png"]).errors
    assert re.match("out of memory.*; lower --batch_size", str(error))
    assert not (tmp_path / "b.png").exists()


def test_images_that_were_written_before_a_signal_are_reported(tmp_path, detector):
    """Workers run ahead of the reports."""
    paths, stop, reported = [tmp_path / f"{number:02}.png" for number in range(20)], [], []
    for path in paths:
        write_image(path, np.zeros((9, 9, 3), np.uint8))
    pipeline = Pipeline(detector, stop=stop, on_result=lambda found, file: stop.append(reported.append(file)))
    targets = [path.with_suffix(".jpg") for path in paths]
    summary = pipeline.images(paths, targets)
    assert len(reported) == summary.images == sum(target.exists() for target in targets) < 20


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_folder_gives_what_its_images_give_without_a_damaged_one(tmp_path, detector, batch_size):
    paths = sorted((make_clip_images(tmp_path / "voc") / "JPEGImages").iterdir())[::2]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(paths[0].read_bytes()[:200])
    tasks = {path: tmp_path / f"{path.stem}.png" for path in [*paths[:2], bad, *paths[2:]]}
    results = []
    pipeline = Pipeline(detector, batch_size=batch_size, on_result=lambda found, file: results.append((file, found)))
    summary = pipeline.images([*tasks], [*tasks.values()])
    assert str(summary).startswith("4 images in ")
    assert re.match(f"{re.escape(str(bad))}: not a readable image .*", *map(str, summary.errors))
    for path, (file, found) in zip(paths, results, strict=True):
        image = read_image(path)
        (alone,) = detector([image])
        assert (file, found.names) == (str(path), alone.names)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.11)
        assert (read_image(tasks[path]) != alone.draw(image)).any(axis=-1).mean() < 0.01  # a box may be a pixel off
    assert not tasks[bad].exists()
