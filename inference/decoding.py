"""Read a video: VideoReader decodes in a process and a thread of its own, ahead of whoever uses the frames."""

import os
import queue
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from threading import Event, Thread

import numpy as np

from inference.ffmpeg import (
    MATRICES,
    SCALE_FLAGS,
    WITHIN_LIMITS,
    as_input,
    colour_filter,
    last_words,
    probe,
    refuse_large,
    start,
)
from inference.planar import PlanarFrame
from inference.timing import Clock, choose_rate
from utils.errors import InputError

AHEAD = 96 * 2**20  # bytes of decoded frames that may wait
PIPE = 2**20  # bytes that a pipe from or to ffmpeg holds: as many as Linux grants without asking
UNKNOWN_MATRIX = "bt601"  # what ffmpeg takes where a file doesn't say how its colours are coded
END = object()


def frames_ahead(frame_bytes):
    """How many frames of this size may wait in a queue."""
    return int(min(max(AHEAD // frame_bytes, 2), 16))


def ffmpeg_threads():
    """Threads for one ffmpeg process: each holds frames of its own, and past eight decoding hardly gets faster."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(min(cores, 8))


def widen(pipe):
    """Let a pipe hold more than its 64 kB, so that a frame takes fewer turns between the processes; Linux only."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    except (ImportError, AttributeError, OSError):
        pass  # slower, that's all


class VideoReader:
    """The frames of a video file, upright as a player shows them.

    Iterating yields uint8 RGB arrays [H, W, 3], each one's own memory; `timed()` yields (seconds, frame) with the time
    counted from the first frame. Both go through the video once. Use it as a context manager, or call close().

    Args:
        path: of the video.
        planar: yield PlanarFrames instead, which are the pictures as the video keeps them.
    Attributes:
        size: (width, height) in pixels, after rotation.
        rate: Fraction, the constant frame rate to write this video with.
        constant: False where the frame rate varies (then a VideoWriter needs the time of each frame).
        expected: frames the file announces. decoded: frames that came out so far.
        missing: announced frames that did not come out (known at the end). complete: it has been read to its end.
        notes: one-line remarks for the user (known at the end).
        seconds: time spent waiting for the decoder.
    A pipe is first copied to its end, as most kinds of videos can't be read without going back.
    Raises InputError where the file is missing, empty, not a video, or nothing of it decodes.
    """

    def __init__(self, path, *, planar=False):
        self.path = Path(path)
        self._copy = copy_of_pipe(self.path)
        try:
            self.info = probe(path, self._copy and self._copy.name)
            self._start(planar)
        except BaseException:
            self._remove_copy()
            raise

    def _start(self, planar):
        """Start the decoder, and the thread that waits for its frames."""
        self.planar = planar
        self.decoded = 0
        self.complete = False
        self.seconds = 0.0
        self._stopped = Event()
        pixels = colour_filter(self.info.colours) if planar else f"scale={SCALE_FLAGS},format=rgb24"
        self._process = start(
            ["-nostdin", "-loglevel", "repeat+level+info", *WITHIN_LIMITS]
            + ["-threads", ffmpeg_threads(), "-i", as_input(self.info.path), "-map", "0:V:0"]
            + ["-fps_mode", "passthrough", "-vf", f"{pixels},showinfo=checksum=0", "-f", "rawvideo", "-"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        widen(self._process.stdout)
        self._log = DecoderLog(self._process.stderr)
        if not self._log.wait_for_first():
            self.close()
            refuse_large(self.path, "\n".join(self._log.errors))
            raise InputError(f"{self.path}: nothing of it can be decoded: {last_words(self._log.errors)}")
        self.size = self._log.size
        self.rate, self.constant = choose_rate(self.info.times, self.info.tick, self._log.rate)
        self.expected = self.info.expected
        if self.info.damaged and len(self.info.times) and self.rate == self._log.rate:
            # The gaps in a constant rate are what was lost.
            self.expected = max(self.expected, round(self.info.times[-1] * self.rate) + 1)
        self._queue = queue.Queue(frames_ahead(self._new_frame().nbytes))
        self._thread = Thread(target=self._decode, name="decode", daemon=True)
        self._thread.start()

    def _new_frame(self):
        """Memory for one frame."""
        width, height = self.size
        if self.planar:
            return PlanarFrame(self.size, MATRICES.get(self.info.colours.matrix, UNKNOWN_MATRIX))
        return np.empty((height, width, 3), np.uint8)

    @property
    def missing(self):
        """Announced frames that did not come out; 0 until the end is reached, and for a video without damage."""
        damaged = self.info.damaged or bool(self._log.errors) or self._process.returncode != 0
        return max(self.expected - self.decoded, 0) if self.complete and damaged else 0

    @property
    def notes(self):
        """What the user should know of the frames that came out, and of those that didn't: a list of lines."""
        notes = []
        if self._log.other_size:
            place, width, height = self._log.other_size
            wide, high = self.size
            change = f"from frame {place + 1} on its pictures are {width}x{height}, not {wide}x{high}"
            notes.append(f"{self.path} changes its size: {change}; they are stretched to it")
        if self.missing:
            notes.append(f"{self.path}: {self.missing} of {self.expected} frames are missing: {self._fault()}")
        return notes

    def _fault(self):
        """Why frames are missing."""
        if self.info.expected > self.info.packets:
            return "it is broken off"
        if self._process.returncode < 0:
            return f"its decoder was ended by signal {-self._process.returncode}"
        reason = f" ({last_words(self._log.errors)})" if self._log.errors else ""
        return f"it is damaged{reason}"

    def __iter__(self):
        for _, frame in self.timed():
            yield frame

    def timed(self):
        """Yield (seconds, frame): float from 0, and uint8 RGB [H, W, 3] or a PlanarFrame."""
        while not self.complete:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is END:
                self.complete = not self._stopped.is_set()
                break
            self.decoded += 1
            yield item

    def _decode(self):
        """Move frames from the decoder to the queue (in a thread of its own)."""
        try:
            clock = Clock(float(1 / self.rate), self.info.late)
            while not self._stopped.is_set():
                frame = self._new_frame()
                started = time.perf_counter()
                whole = read_into(self._process.stdout, frame.data)
                self.seconds += time.perf_counter() - started
                if not whole:
                    break
                shown = clock(self._log.next_time())
                # On a constant grid the exact place is known; the container only keeps it rounded to a tick.
                exact = float(round(shown * self.rate) / self.rate) if self.constant else shown
                self._put((exact, frame))
            self._log.join()
            if not self._stopped.is_set():
                self._process.wait()
            self._put(END)
        except Exception as error:  # handed to whoever iterates
            self._put(error)

    def _put(self, item):
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
        return None

    def close(self):
        """Stop decoding and let go of the file. May be called twice."""
        self._stopped.set()
        self._process.kill()
        self._process.wait()
        if hasattr(self, "_thread"):
            self._thread.join()
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put(END)  # for an iterator that still waits
        self._log.join()
        self._process.stdout.close()
        self._process.stderr.close()
        self._remove_copy()

    def _remove_copy(self):
        if self._copy:
            self._copy.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def copy_of_pipe(path):
    """An open temporary file, removed when it is closed, with all that comes out of a pipe; None for a file.

    Raises InputError where there is no room for it.
    """
    if not path.is_fifo():
        return None
    copy = None
    try:
        copy = tempfile.NamedTemporaryFile(prefix="ssd-pipe-")  # noqa: SIM115 - whoever takes it closes it
        with path.open("rb") as pipe:
            shutil.copyfileobj(pipe, copy)
        copy.flush()
    except OSError as error:
        with suppress(OSError):  # what could not be written before can't be now
            if copy:
                copy.close()
        where = tempfile.tempdir or "any temporary folder"
        raise InputError(f"{path} can't be copied to {where}: {error.strerror}") from error
    return copy


def read_into(stream, buffer):
    """Fill a buffer from a stream; False where it ends before."""
    view, filled = memoryview(buffer).cast("B"), 0
    while filled < len(view):
        count = stream.readinto(view[filled:])
        if not count:
            return False
        filled += count
    return True


class DecoderLog:
    """Listens to ffmpeg's log in a thread: the size, clock and time of each frame (filter showinfo), and errors.

    other_size: (index, width, height) of the first frame that is not of the first one's size, None where there is none.
    """

    def __init__(self, stream):
        self.size = None
        self.other_size = None
        self._count = 0
        self.rate = None
        self.errors = []
        self._tick = None
        self._times = queue.SimpleQueue()
        self._first = Event()
        self._thread = Thread(target=self._listen, args=(stream,), name="decoder log", daemon=True)
        self._thread.start()

    def _listen(self, stream):
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip()
            if "Parsed_showinfo" in line:
                self._understand(line)
            elif "[error]" in line or "[fatal]" in line:
                self.errors = self.errors[-20:] + [re.sub(r"\[(error|fatal)\] ", "", line)]
        self._times.put(END)
        self._first.set()

    def _understand(self, line):
        if found := re.search(r"config in time_base: (\d+)/(\d+), frame_rate: (\d+)/(\d+)", line):
            self._tick = int(found[1]) / int(found[2])
            if int(found[3]) and int(found[4]):
                self.rate = Fraction(int(found[3]), int(found[4]))
        elif found := re.search(r" n: *\d+ pts: *(-?\d+|NOPTS) .* s:(\d+)x(\d+) ", line):
            if self.size is None:
                self.size = int(found[2]), int(found[3])
            elif self.other_size is None and self.size != (int(found[2]), int(found[3])):
                self.other_size = self._count, int(found[2]), int(found[3])
            self._count += 1
            self._times.put(None if found[1] == "NOPTS" else int(found[1]) * self._tick)
            self._first.set()

    def wait_for_first(self):
        """Wait until the first frame is announced; False where there is none."""
        self._first.wait()
        return self.size is not None

    def next_time(self):
        """Seconds of the next frame on the file's clock, None where unknown."""
        item = self._times.get()
        if item is END:
            self._times.put(END)  # the log has ended: so it is for every further frame
        return None if item is END else item

    def join(self):
        """Wait until the log has ended."""
        self._thread.join()
