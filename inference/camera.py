"""Cameras and network streams: CameraReader. Every frame is uint8 RGB [H, W, 3]."""

import sys
import time
from fractions import Fraction
from pathlib import Path
from threading import Condition, Thread

import cv2

from inference.ffmpeg import MAX_RATE
from utils.errors import InputError

CAMERA_TIMEOUT = 10.0  # seconds without a frame, after which a camera counts as gone


class CameraReader:
    """Frames of a camera or a network stream, always the newest one: those that nobody was ready for are dropped.

    Args:
        source: number of the camera, from 0, or the address of a stream (rtsp://...).
    Attributes: as VideoReader's; `expected` is None.

    Raises:
        InputError: there is no such camera, or it gives no frame.
    """

    expected = None

    def __init__(self, source):
        self.name = f"camera {source}" if isinstance(source, int) else source
        self.decoded = 0
        self.complete = False
        self.seconds = 0.0
        self.notes = []
        if isinstance(source, int) and sys.platform == "linux" and not Path(f"/dev/video{source}").exists():
            raise InputError(f"{self.name}: not found (/dev/video{source}); choose another number, or a file")
        level = cv2.utils.logging.setLogLevel(0)  # its own warnings don't name the remedy
        self._capture = cv2.VideoCapture(source)
        found, frame = self._capture.read() if self._capture.isOpened() else (False, None)
        cv2.utils.logging.setLogLevel(level)
        if not found:
            self._capture.release()
            raise InputError(f"{self.name}: no frame; is it connected, and not in use by another program?")
        self.size = frame.shape[1], frame.shape[0]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if 1 <= rate <= MAX_RATE else Fraction(30)
        self._newest = time.monotonic(), frame
        self._changed = Condition()
        self._thread = Thread(target=self._watch, name="camera", daemon=True)
        self._thread.start()

    def _watch(self):
        """Keep the newest frame (in the thread)."""
        while not self.complete:
            try:
                found, frame = self._capture.read()
                if found and frame.shape[1::-1] != self.size:  # connected again, it may change its size
                    frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_AREA)
            except (cv2.error, AttributeError):  # what a dying camera sends, or no frame at all
                found = False
            with self._changed:
                self._newest = (time.monotonic(), frame) if found else self._newest
                self.complete |= not found
                self._changed.notify()

    def timed(self):
        """Yield (seconds from the first frame, frame) until the camera ends."""
        first = None
        while True:
            started = time.perf_counter()
            with self._changed:
                answered = self._changed.wait_for(lambda: self._newest or self.complete, timeout=CAMERA_TIMEOUT)
                newest, self._newest = self._newest, None
            self.seconds += time.perf_counter() - started
            if newest is None:
                how = "gives no more frames" if answered else f"has been silent for {CAMERA_TIMEOUT:g} s"
                self.notes.append(f"{self.name} {how} after {self.decoded} frames; is it still connected?")
                return
            first = first or newest[0]
            self.decoded += 1
            yield newest[0] - first, cv2.cvtColor(newest[1], cv2.COLOR_BGR2RGB)

    def close(self):
        """Release the camera."""
        self.complete = True
        self._thread.join(timeout=5)
        if not self._thread.is_alive():  # OpenCV crashes if a camera is released while a thread reads it
            self._capture.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
