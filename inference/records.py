"""What is kept of a run: one JSON line a frame, and the closing summary."""

import json
import time
from collections import Counter
from contextlib import contextmanager, suppress
from threading import Lock

from inference.encoding import check_writable, grant_usual_permissions, temporary_beside
from utils.errors import InputError


class JsonLines:
    """Detections as JSON, one line a frame. The file gets its name when it is closed; as a context manager it is
    removed after an exception.

    Raises InputError where it can't be written.
    """

    def __init__(self, path):
        self.path = check_writable(path)
        self._partial = temporary_beside(self.path)
        # A name that is no UTF-8 comes as lone surrogates; as JSON's own \\u escapes they can be written and read back.
        self._file = self._partial.open("w", encoding="utf-8", errors="backslashreplace")

    def write(self, detections, **where):
        """One line: `where` (frame, time, file) and `detections`: label, score, box as x1, y1, x2, y2 in pixels."""
        found = [
            {"label": name, "score": round(float(score), 4), "box": [round(float(side), 1) for side in box]}
            for name, score, box in zip(detections.names, detections.scores, detections.boxes, strict=True)
        ]
        self._guard(lambda: self._file.write(json.dumps({**where, "detections": found}, ensure_ascii=False) + "\n"))

    def close(self):
        """Finish the file and give it its name."""
        self._guard(self._file.close)
        self._guard(lambda: grant_usual_permissions(self._partial))
        self._guard(lambda: self._partial.replace(self.path))

    def _guard(self, step):
        try:
            step()
        except OSError as error:
            raise InputError(f"{self.path} can't be written: {error.strerror}") from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self.close()
        finally:
            with suppress(OSError):  # what could not be written before can't be now
                self._file.close()
            self._partial.unlink(missing_ok=True)


class Tally:
    """Counts what a run found and what it took. Stages may be timed from several threads.

    Attributes:
        frames, objects (a Counter by class), seconds (by stage, summed over the threads that work on it).
        threads: {stage: number of threads} where the stages run at the same time; empty where they take turns.
    """

    def __init__(self, *stages):
        self.frames = 0
        self.objects = Counter()
        self.seconds = dict.fromkeys(stages, 0.0)
        self.threads = {}
        self._lock = Lock()

    @contextmanager
    def timing(self, stage):
        """Count the time spent inside as that of a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - started

    def add(self, detections):
        """Count one frame."""
        self.frames += 1
        self.objects.update(detections.names)

    @property
    def slowest(self):
        """The stage that the others wait for, where they run at the same time: its threads have the most to do."""
        return max(self.threads, key=lambda stage: self.seconds[stage] / self.threads[stage])

    def lines(self, elapsed, noun="frame"):
        """The summary, as lines of text. elapsed: seconds by the clock on the wall."""
        found = ", ".join(f"{name} {count}" for name, count in self.objects.most_common()) or "none"
        each = 1000 / max(self.frames, 1)
        stages = ", ".join(f"{stage} {seconds * each:.1f}" for stage, seconds in self.seconds.items())
        plural = noun if self.frames == 1 else f"{noun}s"
        return [
            f"{self.frames} {plural} in {elapsed:.1f} s ({self.frames / max(elapsed, 1e-9):.1f} a second)",
            f"objects: {found}",
            f"milliseconds a {noun}: {stages}{self._overlap()}",
        ]

    def _overlap(self):
        """How the stages' times are to be read, where they don't add up to the run's."""
        if not self.threads:
            return ""
        shared = " and ".join(stage for stage, count in self.threads.items() if count > 1)
        how = f" ({shared} on {max(self.threads.values())} threads)" if shared else ""
        return f"; they overlap{how}, the slowest is {self.slowest}"
