"""Frames and images in several threads: in order, few at a time, with the results of the Detector called one by one."""

import json
import threading
import time
from contextlib import closing
from itertools import count
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from clip_images import CLIP, make_clip_images
from media import X264, ffmpeg

from data import VOC_CLASSES
from inference import Detector
from inference.drawing import draw_detections
from inference.output import json_lines
from inference.pipeline import SLACK, batches, detect_images, detect_video, in_order, share_threads
from inference.video import VideoReader
from utils.errors import InputError
from utils.images import read_image, write_image
from weights.catalogue import EMBEDDED

PERSON = VOC_CLASSES.index("person")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("work")]


@pytest.mark.parametrize("workers", [1, 5])
def test_results_come_in_order_from_all_workers(workers):
    together, done = threading.Barrier(workers, timeout=60), []

    def work(item):
        together.wait()  # without threads side by side, none would return
        time.sleep(0.004 * (-item % workers))
        done.append(item)
        return item

    assert list(in_order(work, range(20), workers)) == list(range(20))
    assert workers == 1 or done != sorted(done)  # else the order proves nothing
    assert list(in_order(str, [1], workers)) == ["1"]
    assert list(in_order(str, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_items_in_progress_is_bounded(workers):
    taken, most = [], 0
    items = (taken.append(item) or item for item in range(40))
    for received, _ in enumerate(in_order(str, items, workers)):
        most = max(most, len(taken) - received)
    assert (most, len(taken)) == (workers + SLACK, 40)


def test_an_error_is_raised_in_its_items_turn_and_as_it_is():
    error, results = InputError("frame 7 is invalid"), []

    def work(item):
        if item == 7:
            raise error
        time.sleep(0.01)  # those before it end later
        return item

    with pytest.raises(InputError) as caught:
        results.extend(in_order(work, range(40), 3))
    assert caught.value is error
    assert results == list(range(7))
    with pytest.raises(ZeroDivisionError):  # one of the source
        list(in_order(str, (1 // (3 - item) for item in range(9)), 2))


def test_closing_early_ends_the_work():
    started = []
    with closing(in_order(started.append, count(), 3)) as results:
        next(results)
    assert 0 < len(started) <= 3 + SLACK


def test_thread_counts_are_those_asked_for_and_restored():
    def seen(_=None):
        return torch.get_num_threads(), cv2.getNumThreads()

    before = seen()
    try:
        torch.set_num_threads(3)
        cv2.setNumThreads(4)
        assert set(in_order(seen, range(8), 2, threads=1)) == {(1, 1)}
        assert seen() == (3, 4)
        with closing(in_order(seen, count(), 2, threads=2)) as results:
            assert next(results) == (2, 2)
            assert torch.get_num_threads() == 3
        assert seen() == (3, 4)
        with pytest.raises(ZeroDivisionError):
            list(in_order(lambda item: 1 // item, [0], 2, threads=1))
        assert seen() == (3, 4)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@pytest.mark.parametrize(("threads", "shared"), [(1, (1, 1)), (2, (2, 1)), (16, (8, 2)), (20, (8, 2))])
def test_threads_are_shared_among_workers(monkeypatch, threads, shared):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert share_threads(torch.device("cpu")) == shared
    assert share_threads(torch.device("cuda")) == (max(shared[0], 2), 1)
    assert share_threads(torch.device("mps")) == (1, threads)


def test_batches_hold_all_items_in_order():
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []


@pytest.fixture
def threads():
    """Three workers, also on a smaller machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def detector():
    return Detector(EMBEDDED, "cpu", "float32", 0.4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Seven frames of the bundled clip, with a cat and people."""
    path = tmp_path_factory.mktemp("media") / "in.mp4"
    ffmpeg("-i", CLIP, "-vf", "select=not(mod(n\\,32)),setpts=N/25/TB", "-frames:v", 7, *X264, path)
    return path


@pytest.fixture(scope="module")
def frames(clip):
    with VideoReader(clip) as reader:
        return list(reader)


@pytest.fixture(scope="module")
def expected(detector, frames):
    """The Detections of each frame, alone."""
    return [detector([frame])[0] for frame in frames]


@pytest.fixture
def run(detector, clip):
    """Run detect_video on the clip: its Summary, and [(frame, time, Detections, what stands in the line)]."""

    def run(detector=detector, reader=None, stop=(), **settings):
        written, lines = [], []
        writer = SimpleNamespace(write=lambda frame, time: written.append((frame, time)), seconds=0.5)
        settings["write_line"] = lambda detections, **where: lines.append((detections, where))
        with VideoReader(clip) as video:
            summary = detect_video(detector, reader or video, writer, stop, **settings)
        return summary, [(*one, *other) for one, other in zip(written, lines, strict=True)]

    return run


def assert_same(found, other):
    assert found.names == other.names
    np.testing.assert_allclose(found.scores, other.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, other.boxes, atol=0.05)


def drawn(image, detections):
    image = image.copy()
    draw_detections(image, detections)
    return image


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_video_gives_what_its_frames_give(run, frames, expected, threads, batch_size):
    summary, results = run(batch_size=batch_size)
    assert {name for one in expected for name in one.names} >= {"cat", "person"}
    assert len(results) == 7
    for index, (frame, seconds, found, where) in enumerate(results):
        assert_same(found, expected[index])
        np.testing.assert_array_equal(frame, drawn(frames[index], found))
        assert seconds == index / 25
        assert where == {"frame": index, "time": index / 25}
    names = [name for one in expected for name in one.names]
    assert (summary.images, summary.objects) == (7, {name: names.count(name) for name in names})
    first, second, third = str(summary).split("\n")
    assert first.startswith("7 frames in ")
    assert first.endswith(" per second)")
    assert second == "objects: " + ", ".join(f"{name} {number}" for name, number in summary.objects.most_common())
    assert "they overlap (network and draw on 3 threads), the slowest is " in third
    assert [part.split()[-2] for part in third.partition(";")[0].split(",")] == ["decode", "network", "draw", "encode"]
    assert f"encode {500 / 7:.1f}" in third


def test_only_the_labels_asked_for_are_found_and_drawn(run, frames, expected, threads):
    summary, results = run(labels=[PERSON])
    persons = [one.of_classes([PERSON]) for one in expected]
    assert 0 < sum(map(len, persons)) < sum(map(len, expected))
    for image, (frame, _, found, _), person in zip(frames, results, persons, strict=True):
        assert_same(found, person)
        np.testing.assert_array_equal(frame, drawn(image, found))
    assert set(summary.objects) == {"person"}


def test_a_run_ends_early_when_stopped_or_when_its_window_is_closed(run, threads):
    stop = []
    display = SimpleNamespace(closed=False, show=lambda frame: stop.append(frame))
    summary, results = run(stop=stop, display=display, batch_size=2)
    assert summary.images == len(results) == len(stop) == 2  # the batch is finished
    display.show = lambda frame: setattr(display, "closed", True)
    assert run(display=display)[0].images == 1


def test_frames_of_a_camera_do_not_wait_for_a_worker(run, detector, frames):
    handed = []

    def timed():
        for index, frame in enumerate(frames[:3]):
            assert len(handed) == index  # the one before is shown already
            yield 0.1 * index, frame.copy()

    camera = SimpleNamespace(expected=None, seconds=0.0, timed=timed)
    summary, results = run(reader=camera, display=SimpleNamespace(closed=False, show=handed.append))
    assert [where["time"] for *_, where in results] == [0, 0.1, 0.2]
    assert "on 3 threads" not in str(summary)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_running_out_of_memory_is_an_input_error(run, detector, tmp_path, monkeypatch, threads, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Detector, "outputs", fail)
    with pytest.raises(InputError, match="out of memory with batch size 2; lower --batch_size"):
        run(batch_size=2)
    for place in ("read_image", "draw_detections"):
        with monkeypatch.context() as patch:
            patch.setattr(f"inference.pipeline.{place}", fail)
            patch.setattr(Detector, "__call__", lambda detector, images: [None] * len(images))
            write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
            with pytest.raises(InputError, match="out of memory; "):
                detect_images(detector, [tmp_path / "a.png"], [tmp_path / "b.png"])
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_of_a_folder_are_all_processed_but_a_damaged_one(tmp_path, detector, capsys, threads, batch_size):
    paths = sorted((make_clip_images(tmp_path / "voc") / "JPEGImages").iterdir())
    images = [read_image(path) for path in paths]
    paths.insert(2, tmp_path / "bad.jpg")
    paths[2].write_bytes(paths[0].read_bytes()[:200])
    targets = [tmp_path / f"{path.stem}.png" for path in paths]
    with json_lines(tmp_path / "found.jsonl") as write_line:
        summary = detect_images(detector, paths, targets, batch_size=batch_size, write_line=write_line)
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: left out: {paths[2]}: not a readable image (")
    assert not targets[2].exists()
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    del paths[2], targets[2]
    assert [line["file"] for line in lines] == list(map(str, paths))
    for index, (image, target, line) in enumerate(zip(images, targets, lines, strict=True)):
        (found,) = detector([image])
        assert line.keys() == {"frame", "time", "file", "detections"}
        assert (line["frame"], line["time"]) == (index, None)
        assert [one["label"] for one in line["detections"]] == found.names
        for one, score, box in zip(line["detections"], found.scores, found.boxes, strict=True):
            np.testing.assert_allclose([one["score"], *one["box"]], [score, *box], atol=0.11)
            assert one["score"] == pytest.approx(score, abs=2e-4)
        assert (read_image(target) != drawn(image, found)).any(axis=-1).mean() < 0.01  # a box may be a pixel off
    assert summary.images == 8
    assert "read, network, draw and write" not in str(summary)
    assert "8 images in" in str(summary)


def test_a_run_without_a_readable_image_fails(tmp_path, detector):
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for path in paths:
        path.write_text("no image")
    targets = [path.with_suffix(".png") for path in paths]
    with pytest.raises(InputError, match="none of its 2 images can be read"):
        detect_images(detector, paths, targets)
    with pytest.raises(InputError, match=r"a\.jpg: not a readable image"):
        detect_images(detector, paths[:1], targets[:1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "b.jpg"]
