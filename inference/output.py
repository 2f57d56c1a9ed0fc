"""What a run leaves behind besides its images: JSON lines, messages, a summary, a window."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from threading import Lock

import cv2

from utils.errors import InputError, count, printable
from utils.files import whole_file

STDOUT = "-"


def say(text, file=None):
    """Print lines to stdout, or to `file`, with unprintable characters escaped."""
    _print("\n".join(printable(line) for line in text.split("\n")), file or sys.stdout)


def _print(text, file):
    """Print and flush. An output that is closed (`| head -1`) or full does not end the run: the rest is dropped."""
    try:
        print(text, file=file, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


@contextmanager
def json_lines(path):
    """Write detections as JSON, one line per image or frame. Yields `write(detections, **where)`.

    A line holds `where` (frame, time, file) and "detections": label, score, and box as x1, y1, x2, y2 in pixels. The
    file is complete under its name or not there at all. A path of "-" is stdout, and None writes nothing.

    Raises:
        InputError: the file can't be written.
    """
    if path is None:
        yield lambda *_, **__: None
    elif path == STDOUT:
        yield lambda detections, **where: _print(_to_json(detections, where), sys.stdout)
    else:
        with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            yield lambda detections, **where: file.write(_to_json(detections, where) + "\n")


def _to_json(detections, where):
    """Return a line of JSON, in ASCII: names may hold letters that a terminal or a file can't."""
    found = [
        {"label": name, "score": round(float(score), 4), "box": [round(float(side), 1) for side in box]}
        for name, score, box in zip(detections.names, detections.scores, detections.boxes, strict=True)
    ]
    return json.dumps({**where, "detections": found})


class Summary:
    """Counts of a run and the time of its stages, which may run in several threads.

    Attributes:
        images: number of images or frames. objects: Counter by class name.
        seconds: {stage: seconds}, summed over its threads.
        threads: {stage: number of threads}; the stages overlap.
    """

    def __init__(self, noun, threads):
        self.noun = noun
        self.threads = threads
        self.images = 0
        self.objects = Counter()
        self.seconds = dict.fromkeys(threads, 0.0)
        self._started = time.perf_counter()
        self._lock = Lock()

    @contextmanager
    def timing(self, stage):
        """Add the time spent inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - started

    def add(self, detections):
        """Count one image."""
        self.images += 1
        self.objects.update(detections.names)

    def __str__(self):
        elapsed = time.perf_counter() - self._started
        found = ", ".join(f"{name} {number}" for name, number in self.objects.most_common()) or "none"
        stages = ", ".join(f"{name} {1000 * t / max(self.images, 1):.1f}" for name, t in self.seconds.items())
        shared = [stage for stage, number in self.threads.items() if number > 1]
        how = f" ({' and '.join(shared)} on {max(self.threads.values())} threads)" if shared else ""
        slowest = max(self.threads, key=lambda stage: self.seconds[stage] / self.threads[stage])
        return (
            f"{count(self.images, self.noun)} in {elapsed:.1f} s ({self.images / elapsed:.1f} per second)\n"
            f"objects: {found}\n"
            f"milliseconds per {self.noun}: {stages}; they overlap{how}, the slowest is {slowest}"
        )


class Display:
    """A window. `closed` is True once its user has pressed q or Esc, or closed it.

    Raises:
        InputError: no window can be opened.
    """

    TITLE = "Object detection (q quits)"

    def __init__(self):
        self.closed = False
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise InputError("--show: there is no display (DISPLAY is not set); leave --show out")
        # OpenCV ends the process if the display does not answer, so another process tries first.
        code = "import cv2; cv2.namedWindow('test'); cv2.waitKey(1); cv2.destroyAllWindows()"
        trial = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
        if trial.returncode:
            headless = "; install opencv-python in place of -headless" if b"not implemented" in trial.stderr else ""
            raise InputError(f"--show: no window can be opened{headless or '; check DISPLAY, or leave --show out'}")

    def show(self, frame, wait=False):
        """Show uint8 RGB [H, W, 3]; wait for a key if `wait`."""
        cv2.namedWindow(self.TITLE, cv2.WINDOW_NORMAL)
        cv2.imshow(self.TITLE, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        while not self.closed:
            key = cv2.waitKey(50 if wait else 1)
            self.closed = key in (ord("q"), 27) or cv2.getWindowProperty(self.TITLE, cv2.WND_PROP_VISIBLE) < 1
            if not wait or key >= 0:
                break
