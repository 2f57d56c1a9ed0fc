"""Cameras and network streams: CameraReader. Every frame is uint8 RGB [H, W, 3]."""

import time
from contextlib import AbstractContextManager
from fractions import Fraction
from threading import Condition, Thread

import cv2

from utils.errors import InputError, count

MAX_RATE = 240  # of a camera; some drivers report nonsense
CAMERA_TIMEOUT = 25.0  # seconds without a frame until a camera is given up: reading and reopening a stream may take 24


class CameraReader(AbstractContextManager):
    """The newest frames of a camera or a network stream. Frames that arrive while the caller is busy are dropped.

    Args:
        source: number of the camera, from 0, or the address of a stream (rtsp://...).

    Attributes:
        size, rate, decoded, complete, seconds, notes: as in VideoReader.

    Raises:
        InputError: there is no such camera, it gives no frame, or the address is that of a video file.
    """

    live, expected = True, None

    def __init__(self, source):
        self._source = source
        self.name = f"camera {source}" if isinstance(source, int) else source
        self.decoded = 0
        self.complete = False
        self.seconds = 0.0
        self.notes = []
        self._capture = _open(source)
        found, frame = self._capture.read() if self._capture.isOpened() else (False, None)
        if not found:
            self._capture.release()
            raise InputError(f"{self.name}: no frame; is it connected, and not in use by another program?")
        self._is_recording = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        if self._is_recording and str(source).startswith(("http", "file:")):
            self._capture.release()
            raise InputError(f"{self.name}: a file, not a live stream; download it, and name the file")
        self.size = frame.shape[1], frame.shape[0]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if 1 <= rate <= MAX_RATE else Fraction(30)
        self._newest = time.monotonic(), frame
        self._changed = Condition()
        self._thread = Thread(target=self._watch, name="camera", daemon=True)
        self._thread.start()

    def _read(self):
        """Read a frame in the size of the first one; None if there is none."""
        try:
            found, frame = self._capture.read()
            if found and frame.shape[1::-1] != self.size:  # the size may change after a reconnection
                frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_AREA)
        except (cv2.error, AttributeError):  # a damaged frame, or no frame
            return None
        return frame if found else None

    def _watch(self):
        """Keep the newest frame (in the thread). A live stream is opened once more if it ends."""
        retry = isinstance(self._source, str) and not self._is_recording
        while not self.complete:
            frame = self._read()
            if frame is None and retry:
                retry, started = False, time.monotonic()
                self._capture.release()
                self._capture = _open(self._source)
                frame = self._read()
                seconds = time.monotonic() - started
                if frame is not None:
                    lost = f"about {round(seconds * self.rate)} frames"
                    self.notes.append(f"{self.name}: the connection was lost for {seconds:.1f} s ({lost})")
            with self._changed:
                self._newest = self._newest if frame is None else (time.monotonic(), frame)
                self.complete |= frame is None
                self._changed.notify()

    def timed(self, stop=False):
        """Yield (seconds from the first frame, frame) until the camera ends, or `stop` (a StopSignals) is true."""
        first = None
        while True:
            started, answered = time.perf_counter(), None
            while not (answered or stop or time.perf_counter() - started > CAMERA_TIMEOUT):
                with self._changed:
                    answered = self._changed.wait_for(lambda: self._newest or self.complete, timeout=0.2)
                    newest, self._newest = self._newest, None
            self.seconds += time.perf_counter() - started
            if not answered and stop:
                return
            if newest is None:
                how = "gives no more frames" if answered else f"has sent no frame for {CAMERA_TIMEOUT:g} s"
                self.notes.append(f"{self.name} {how} after {count(self.decoded, 'frame')}; is it still connected?")
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

    def __exit__(self, *_):
        self.close()


def _open(source):
    """Open a camera by its number, or a stream by its address: cv2.VideoCapture."""
    cv2.utils.logging.setLogLevel(0)  # OpenCV's warnings don't name the remedy
    if isinstance(source, int):
        return cv2.VideoCapture(source)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 8000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 8000]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
