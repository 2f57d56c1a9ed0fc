"""Write a video: VideoWriter encodes in a process and a thread of its own, behind whoever makes the frames."""

import contextlib
import os
import queue
import subprocess
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from threading import Thread

import numpy as np

from inference.decoding import ffmpeg_threads, frames_ahead, widen
from inference.ffmpeg import HD_COLOURS, as_input, colour_filter, colour_tags, last_words, start
from inference.planar import PlanarFrame
from inference.sound import add_sound
from utils.errors import InputError

# Container of each suffix that holds H.264, in ffmpeg's names.
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
END = None


class VideoWriter:
    """Write frames as an H.264 video (yuv420p, index in front) that plays in a browser.

    Frames go to a file with a name of its own beside the target, which takes the target's name when it is complete.
    As a context manager it closes the file at the end and after Ctrl-C, so that what there is plays; after any other
    exception it removes what it wrote.

    Args:
        path: target; .mp4, .m4v, .mov or .mkv.
        size: (width, height) of the frames in pixels. An odd side is padded by one pixel (said in `notes`).
        rate: frames a second, a Fraction or what makes one.
        source: the VideoReader whose frames these are: its sound, colours and pixel shape are kept. Where that gives
            PlanarFrames, these are written, else RGB arrays.
    Attributes:
        frames: pictures written, repeats included. seconds: time spent waiting for the encoder.
        notes: one-line remarks for the user.
    Raises InputError where the target can't be written, or the encoder stops (a full disk).
    """

    def __init__(self, path, size, rate, source=None):
        self.path = check_target(path)
        self.size = tuple(size)
        self.rate = Fraction(rate)
        self.source = source
        self.planar = source is not None and source.planar
        self.frames = 0
        self.seconds = 0.0
        self.notes = []
        self._partial = []
        self._error = None
        self._last = None
        self._closed = False
        width, height = self.size
        self._padding = (height % 2, width % 2)
        if any(self._padding):
            even = f"{width + width % 2}x{height + height % 2}"
            self.notes.append(f"{width}x{height} is written as {even}: H.264 takes even sides, the last pixel repeats")
        self._start(self.temporary())
        self._queue = queue.Queue(frames_ahead(width * height * 3 // (2 if self.planar else 1)))
        self._thread = Thread(target=self._encode, name="encode", daemon=True)
        self._thread.start()

    def _start(self, target):
        """Start the encoder process on a temporary file."""
        width, height = (side + side % 2 for side in self.size)
        say = colour_tags if self.planar else colour_filter
        filters = say(self.source.info.colours if self.source else HD_COLOURS)
        if self.source and self.source.info.pixel_aspect != "1:1":
            wide, high = self.source.info.pixel_aspect.split(":")
            turned = round(self.source.info.rotation / 90) % 2
            filters += f",setsar={high}/{wide}" if turned else f",setsar={wide}/{high}"
        self._process = start(
            ["-y", "-loglevel", "error", "-f", "rawvideo", "-pixel_format", "yuv420p" if self.planar else "rgb24"]
            + ["-video_size", f"{width}x{height}"]
            + ["-framerate", str(self.rate), "-i", "pipe:0", "-vf", filters, "-fps_mode", "passthrough"]
            + ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-threads", ffmpeg_threads()]
            + ["-movflags", "+faststart"]
            + ["-f", CONTAINERS[self.path.suffix.lower()], as_input(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        widen(self._process.stdin)
        self._log = []
        self._listener = Thread(target=lambda: self._log.extend(self._process.stderr), daemon=True)
        self._listener.start()

    def temporary(self):
        """A new empty file beside the target, known to be removed where the writing fails."""
        path = temporary_beside(self.path)
        self._partial.append(path)
        return path

    def write(self, frame, shown=None):
        """Write one frame: uint8 RGB [H, W, 3], or a PlanarFrame; don't change it afterwards.

        shown: seconds from the first frame. Where frames come at a variable rate, the one before is repeated for as
        long as it is to be seen; none is ever left out. Without it, frames follow each other at the constant rate.
        """
        frame = self._checked(frame)
        if shown is not None and self._last is not None:
            self._fill(shown)
        self._put(frame)
        self._last = frame

    def _checked(self, frame):
        """The frame with even sides. Raises ValueError unless it is of the announced kind and size."""
        announced = self.size[1], self.size[0], 3
        planar = isinstance(frame, PlanarFrame)
        if planar != self.planar or frame.shape != announced or not (planar or frame.dtype == np.uint8):
            kind, wanted = "planar" if planar else frame.dtype, "planar" if self.planar else "uint8"
            raise ValueError(f"frame is {kind} {list(frame.shape)}, not {wanted} {list(announced)} as announced")
        if self.planar:
            return frame.padded() if any(self._padding) else frame
        if any(self._padding):
            return np.pad(frame, ((0, self._padding[0]), (0, self._padding[1]), (0, 0)), "edge")
        return np.ascontiguousarray(frame)

    def _fill(self, until):
        """Repeat the last frame up to the place of a moment given in seconds."""
        for _ in range(round(until * self.rate) - self.frames):
            self._put(self._last)

    def _put(self, frame):
        if self._closed:
            raise ValueError("the video is closed")
        self._queue.put(frame)
        self.frames += 1
        if self._error:
            error, self._error = self._error, None
            raise error

    def _encode(self):
        """Move frames from the queue to the encoder (in a thread of its own); after an error only empty the queue."""
        failed = False
        while (frame := self._queue.get()) is not END:
            if failed:
                continue
            started = time.perf_counter()
            try:
                self._process.stdin.write(frame.data)
            except OSError:
                failed = True
                self._process.wait()
                self._listener.join()
                self._error = self._failure()
            self.seconds += time.perf_counter() - started

    def _failure(self):
        words = last_words([line.decode("utf-8", "replace") for line in self._log])
        return InputError(f"{self.path} can't be written: {words}; is the disk full?")

    def close(self):
        """Finish the file, add the sound, and move it to its place. Raises InputError where that fails."""
        if self._closed:
            return
        source = self.source
        try:
            if source and source.complete and not source.constant and self._last is not None:
                self._fill(self.frames / self.rate + Fraction(source.info.tail) - 1 / self.rate)
            started = time.perf_counter()
            self._finish_encoding()
            done = self._partial[0]
            if source and source.info.sound:
                done, note = add_sound(self, done, CONTAINERS[self.path.suffix.lower()])
                self.notes += [note] if note else []
            self.seconds += time.perf_counter() - started
            grant_usual_permissions(done)
            done.replace(self.path)
        except OSError as error:
            raise InputError(f"{self.path} can't be written: {error.strerror}") from error
        finally:
            self.discard()

    def _finish_encoding(self):
        self._closed = True
        self._queue.put(END)
        self._thread.join()
        if self._error:
            raise self._error
        self._process.stdin.close()
        self._process.wait()
        self._listener.join()
        if self._process.returncode or not self.frames:
            raise self._failure() if self.frames else InputError(f"{self.path} is not written: there was no frame")

    def discard(self):
        """Stop, and remove everything that has not got the target's name."""
        if not self._closed:
            self._closed = True
            self._queue.put(END)
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stderr):
            with contextlib.suppress(OSError):
                stream.close()
        for path in self._partial:
            path.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None or (issubclass(kind, KeyboardInterrupt) and self.frames):
            self.close()
        else:
            self.discard()


def check_target(path):
    """The target with links followed. Raises InputError where a video can't be written there."""
    target = Path(path)
    if target.suffix.lower() not in CONTAINERS:
        raise InputError(f"{path}: a video is written as one of {', '.join(CONTAINERS)}; give it such a name")
    return check_writable(target)


def check_writable(path):
    """A target file with links followed. Raises InputError where it can't be written (nothing is left behind)."""
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise InputError(f"{path} can't be written: it is {'a folder' if target.is_dir() else 'not a plain file'}")
    if not target.parent.is_dir():
        raise InputError(f"{path} can't be written: there is no folder {target.parent}; make it first")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"{path} can't be written: it is write-protected")
    temporary_beside(target).unlink()
    return target


def temporary_beside(target):
    """A new empty file with a name of its own in the target's folder, of the same suffix."""
    try:
        handle, name = tempfile.mkstemp(prefix=".writing-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise InputError(f"{target} can't be written: {error.strerror or error}") from error
    os.close(handle)
    return Path(name)


def grant_usual_permissions(path):
    """Give a temporary file the permissions that a newly made file has."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
