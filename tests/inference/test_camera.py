"""CameraReader: the newest frame, and a camera that goes away."""

import threading
import time

import cv2
import numpy as np
import pytest
from checks import refused

from inference import camera
from inference.camera import CameraReader


class Camera:
    """Stands in for cv2.VideoCapture: six frames, then `end()`. The first one only shows that the camera works."""

    left = 6

    def __init__(self, *_):
        pass

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def read(self):
        time.sleep(0.03)
        self.left -= 1
        return (True, np.full((48, 64, 3), (0, 0, 200), np.uint8)) if self.left >= 0 else self.end()

    def end(self):
        return False, None

    def get(self, which):
        return 0 if which == cv2.CAP_PROP_FRAME_COUNT else 20.0

    def release(self):
        pass


ENDS = {
    "no frame": Camera.end,
    "an error": lambda _: cv2.imdecode(None, cv2.IMREAD_COLOR),  # raises cv2.error
    "an empty frame": lambda _: (True, None),
    "silence": lambda _: time.sleep(3) or (False, None),
    "another size": lambda self: (self.left >= -3, np.full((96, 128, 3), (200, 0, 0), np.uint8)),  # reconnected
}


@pytest.fixture(autouse=True)
def install(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)


@pytest.mark.parametrize("kind", ENDS)
def test_a_camera_that_goes_away_ends_with_a_note(monkeypatch, kind):
    monkeypatch.setattr(Camera, "end", ENDS[kind])
    if kind == "silence":
        monkeypatch.setattr(camera, "CAMERA_TIMEOUT", 0.6)
    with CameraReader(7) as reader:
        times, frames = zip(*reader.timed(), strict=True)
    assert (reader.size, reader.rate) == ((64, 48), 20)
    assert 1 <= len(frames) == reader.decoded <= 10
    assert list(times) == sorted(times)
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert frames[0][24, 32].tolist() == [200, 0, 0]  # RGB
    assert frames[-1][24, 32].argmax() == (2 if kind == "another size" else 0)
    (note,) = reader.notes
    assert note.startswith(f"camera 7 {'has sent no frame for 0.6 s' if kind == 'silence' else 'gives no more frames'}")


def test_frames_that_nobody_is_ready_for_are_dropped():
    with CameraReader(7) as reader:
        reader._thread.join(60)  # all six have come
        assert len(list(reader.timed())) == 1


def test_a_camera_that_is_not_there(monkeypatch):
    monkeypatch.setattr(Camera, "left", 0)
    refused("camera 7: no frame", CameraReader, 7)


def test_a_file_is_no_stream_but_a_recording_is(monkeypatch):
    monkeypatch.setattr(Camera, "get", lambda *_: 20)
    refused(r"http://here/a\?b=1: a file, not a live stream", CameraReader, "http://here/a?b=1")
    with CameraReader("rtsp://here/recording") as reader:
        assert list(reader.timed())
    assert len(reader.notes) == 1  # it ends; it isn't opened again


def test_a_signal_ends_the_wait_for_a_frame(monkeypatch):
    stop, ended = [], threading.Event()
    monkeypatch.setattr(Camera, "end", lambda _: (stop.append("SIGINT"), ended.wait(60))[:0] or (False, None))
    with CameraReader(7) as reader:
        assert len(list(reader.timed(stop))) >= 1
        assert (reader.complete, reader.notes) == (False, [])
        ended.set()


def test_a_camera_is_not_released_while_it_is_read(monkeypatch):
    """OpenCV would crash."""
    answer, asked, released = threading.Event(), threading.Event(), []

    def end(_):
        asked.set()
        answer.wait(60)
        return False, None

    monkeypatch.setattr(Camera, "end", end)
    monkeypatch.setattr(Camera, "left", 1)
    monkeypatch.setattr(Camera, "release", lambda _: released.append(answer.is_set()))
    reader = CameraReader(7)
    assert asked.wait(60)
    join = reader._thread.join
    monkeypatch.setattr(reader._thread, "join", lambda timeout: join(0.05))
    reader.close()
    assert released == []
    answer.set()
    join(60)
    reader.close()
    assert released == [True]


def test_a_stream_is_connected_once_more(monkeypatch):
    opened = []

    def connect(self, *_):
        self.left = 4 if len(opened) < 2 else 0
        opened.append(self)

    monkeypatch.setattr(Camera, "__init__", connect)
    with CameraReader("rtsp://somewhere/stream") as reader:
        assert 1 <= len(list(reader.timed())) <= 8
    assert len(opened) == 2
    assert "the connection was lost for 0.0 s" in reader.notes[0]
    assert "gives no more frames" in reader.notes[1]
