"""Read a camera: its newest frame, whenever one is asked for."""

import sys
import time
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from threading import Condition, Thread

import cv2

from utils.errors import InputError

LONGEST_SILENCE = 10.0  # seconds without a picture, after which a camera is taken to be gone


class CameraReader:
    """The frames of a camera, as a VideoReader gives those of a file; but a frame that nobody was ready for is dropped.

    Args:
        number: of the camera, from 0.
    Attributes: see VideoReader. The end and the number of frames are unknown (`expected` is None). A camera that is
    unplugged, or silent for LONGEST_SILENCE, ends like a file, with a line in `notes`.
    Raises InputError where there is no such camera, or it gives no picture.
    """

    constant = False
    expected = None

    def __init__(self, number):
        self.path = f"camera {number}"
        self.decoded = 0
        self.complete = False
        self.seconds = 0.0
        self.notes = []
        if sys.platform == "linux" and not Path(f"/dev/video{number}").exists():
            raise InputError(f"there is no camera {number} (/dev/video{number}); name another one, or a file")
        with quiet_opencv():
            self._capture = cv2.VideoCapture(number)
            answers, frame = self._capture.read() if self._capture.isOpened() else (False, None)
        if not answers:
            self._capture.release()
            raise InputError(f"camera {number} gives no picture: is it connected, and not in use by another program?")
        self.size = frame.shape[1], frame.shape[0]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if 1 <= rate <= 240 else Fraction(30)
        self._newest, self._ended = (time.monotonic(), frame), False
        self._change = Condition()
        self._thread = Thread(target=self._watch, name="camera", daemon=True)
        self._thread.start()

    def _watch(self):
        """Keep the newest frame (in a thread of its own)."""
        while not self._ended:
            try:
                answers, frame = self._capture.read()
                if answers and frame.shape[1::-1] != self.size:  # plugged in again, it may begin with another size
                    frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_AREA)
            except (cv2.error, AttributeError):  # OpenCV trips over what a dying camera sends, or there is no frame
                answers = False
            with self._change:
                self._newest = (time.monotonic(), frame) if answers else self._newest
                self._ended |= not answers
                self._change.notify()

    def timed(self):
        """Yield (seconds, frame): float from 0 and uint8 RGB [H, W, 3], until the camera ends."""
        first = None
        while True:
            started = time.perf_counter()
            with self._change:
                heard = self._change.wait_for(lambda: self._newest or self._ended, timeout=LONGEST_SILENCE)
                taken, self._newest = self._newest, None
            self.seconds += time.perf_counter() - started
            if taken is None:
                self.complete = True
                how = "gave no more pictures" if heard else f"has been silent for {LONGEST_SILENCE:g} s"
                self.notes.append(f"{self.path} {how} after {self.decoded} frames: is it still connected?")
                return
            moment, frame = taken
            first = moment if first is None else first
            self.decoded += 1
            yield moment - first, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self):
        """Let go of the camera."""
        self._ended = True
        self._thread.join(timeout=5)
        if not self._thread.is_alive():  # else it still waits for the camera, which mustn't vanish under it
            self._capture.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextmanager
def quiet_opencv():
    """Keep OpenCV from printing its own warnings about a camera; ours says what to do."""
    level = cv2.setLogLevel(0) if hasattr(cv2, "setLogLevel") else None
    try:
        yield
    finally:
        if level is not None:
            cv2.setLogLevel(level)
