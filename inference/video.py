"""Video files: VideoReader and VideoWriter. Every frame is uint8 RGB [H, W, 3].

ffmpeg (from imageio-ffmpeg) decodes to a constant frame rate and encodes to H.264, each in its own process. A thread
with a bounded queue keeps each process busy while the network computes.
"""

import logging
import os
import re
import time
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from fractions import Fraction
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import cv2
import imageio_ffmpeg
import numpy as np

from inference.ffmpeg import READ_ONLY_FILES, probe, reason, run, stream_ends, url
from inference.inputs import CONTAINERS
from utils.errors import InputError
from utils.files import whole_file

# Sound codecs that containers and players support; any other is converted to AAC. Matroska supports all.
_COPIED_SOUND = {".mp4": {"aac", "mp3", "ac3", "opus", "flac"}, ".mov": {"aac", "mp3", "ac3", "alac"}}
_QUEUE_BYTES = 96 * 2**20
_THREADS = ["-threads", str(min(os.cpu_count() or 1, 8))]  # each holds frames in memory; more are hardly faster
# Without the last two flags, swscale darkens every frame by one level in the conversion to RGB.
_TO_RGB = "scale=flags=bilinear+full_chroma_int+accurate_rnd"
_BT709 = "range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_END = object()


class VideoReader(AbstractContextManager):
    """Frames of a video file, upright and at a constant rate, decoded ahead in a thread.

    It can be iterated once, and yields uint8 RGB [H, W, 3] arrays that the caller may change. A variable frame rate is
    converted to the nominal one: frames are repeated or dropped, and the length stays the same.

    Attributes:
        size: (width, height) in pixels, after rotation.
        rate: frames per second, a Fraction.
        expected: number of frames according to the file's header, None if unknown.
        decoded: number of frames so far. complete: whether the end was reached.
        seconds: time spent waiting for the decoder.
        info: VideoInfo.

    Raises:
        InputError: the file is missing, unreadable, or not a video.
    """

    live = False

    def __init__(self, path):
        logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of every rotated video
        self.path = Path(path)
        self.info = probe(self.path)
        self.size, self.rate = self.info.size, self.info.rate
        self.expected = round(self.info.duration * self.rate) if self.info.duration else None
        self.decoded = 0
        self.complete = False
        self.seconds = 0.0
        filters = ["yadif=deint=interlaced"] if self.info.interlaced else []
        matrix = ":in_color_matrix=bt709" if self.info.untagged_hd else ""
        # Not PTS-STARTPTS, which starts again at 0 when the size changes within a video.
        filters += [f"setpts=PTS-{self.info.start:.6f}/TB", f"{_TO_RGB}{matrix}", "format=gbrp"]
        self._raw = imageio_ffmpeg.read_frames(
            url(self.path),
            pix_fmt="gbrp",  # planes, to which swscale converts twice as fast
            input_params=["-nostats", *READ_ONLY_FILES, *_THREADS],
            output_params=["-map", "0:V:0", "-vf", ",".join(filters), "-fps_mode", "cfr", "-r", str(self.rate)],
        )
        announced = None
        with suppress(Exception):  # its parser fails in many ways
            announced = tuple(next(self._raw)["size"])
        if announced != self.size:
            self._raw.close()
            raise InputError(f"{path}: can't be read as a video; rename it if its name contains line breaks")
        self._queue = Queue(_queue_length(self.size))
        self._closed = False
        self._thread = Thread(target=self._decode, name="decode", daemon=True)
        self._thread.start()

    def _decode(self):
        """Move frames from ffmpeg to the queue (in the thread)."""
        width, height = self.size
        end = _END
        try:
            with closing(self._raw):
                while not self._closed:
                    started = time.perf_counter()
                    data = next(self._raw, _END)
                    self.seconds += time.perf_counter() - started
                    if data is _END:
                        break
                    green, blue, red = np.frombuffer(data, np.uint8).reshape(3, height, width)
                    self._queue.put(cv2.merge((red, green, blue)))
        except RuntimeError:  # the decoder died within a frame
            pass
        except Exception as error:  # raised again in __iter__
            end = error
        self._queue.put(end)

    def __iter__(self):
        while not self.complete:
            frame = self._queue.get()
            if isinstance(frame, Exception):
                raise frame
            if frame is _END:
                self.complete = not self._closed
                return
            self.decoded += 1
            yield frame

    def timed(self):
        """Yield (seconds from the first frame, frame)."""
        for index, frame in enumerate(self):
            yield float(index / self.rate), frame

    @property
    def missing(self):
        """Number of expected frames that were not decoded; 0 before the end is reached."""
        if not self.complete or self.expected is None or self.decoded >= self.expected - 1:
            return 0
        video_end, file_end = stream_ends(self.path)
        if file_end < self.info.duration - max(0.1, 1.5 / self.rate):  # truncated
            return self.expected - self.decoded
        missing = round((video_end - self.info.start) * self.rate) - self.decoded  # else the sound is longer
        return missing if missing > 1 + self.rate / 10 else 0

    @property
    def notes(self):
        """Lines for the user, known at the end."""
        missing = self.missing
        if not missing:
            return []
        total = self.decoded + missing
        return [f"{self.path}: {missing} of {total} frames are missing; the file is truncated or damaged"]

    def close(self):
        """Stop the decoder. May be called twice."""
        self._closed = True
        while self._thread.is_alive():
            with suppress(Empty):
                self._queue.get(timeout=0.02)
        with suppress(Exception):
            self._queue.put_nowait(_END)

    def __exit__(self, *_):
        self.close()


class VideoWriter(AbstractContextManager):
    """Write RGB frames as an H.264 video (BT.709, yuv420p, index in front) with the sound of `source`.

    On exit, also after an early stop, it finishes the file. After an exception, no new file remains, and an earlier
    file of that name is kept.

    Args:
        path: target, with one of the suffixes CONTAINERS.
        size: (width, height) of the frames. Odd sides are padded by one pixel, because H.264 needs even sides.
        rate: frames per second, a Fraction or a number.
        source: the VideoReader that the frames come from: its sound and pixel aspect ratio are kept.

    Attributes:
        frames: number of frames written. seconds: time spent waiting for the encoder. notes: lines for the user.

    Raises:
        InputError: the target can't be written, or the encoder fails (full disk).
    """

    def __init__(self, path, size, rate, source=None):
        self.path = Path(path)
        self.size = tuple(size)
        self.rate = Fraction(rate).limit_denominator(1_000_000)
        self.source = source
        self.frames = 0
        self.seconds = 0.0
        self.notes = []
        self._error = None
        self._last = None
        if self.path.suffix.lower() not in CONTAINERS:
            raise InputError(f"{path}: a video is written as {', '.join(CONTAINERS)}; choose such a name")
        width, height = self.size
        self._padding = height % 2, width % 2
        even = width + width % 2, height + height % 2
        if any(self._padding):
            self.notes.append(f"{path}: written as {even[0]}x{even[1]}, since H.264 needs even sides")
        filters = f"scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,setparams={_BT709}"
        if source:
            filters += f",setsar={source.info.pixel_aspect}"
        with ExitStack() as stack:
            self._target = stack.enter_context(whole_file(path))
            self._silent = self._target.with_suffix(f".frames{self.path.suffix}")  # the video without sound
            stack.callback(self._silent.unlink, missing_ok=True)
            self._target.touch()  # fails now if it can't be written
            self._raw = imageio_ffmpeg.write_frames(
                url(self._silent),
                even,
                fps=float(self.rate),
                quality=None,
                codec="libx264",
                macro_block_size=1,
                ffmpeg_log_level="quiet",
                input_params=["-r", str(self.rate)],  # exact
                output_params=["-vf", filters, "-preset", "veryfast", "-crf", "20", *_THREADS],
            )
            self._queue = Queue(_queue_length(self.size))
            self._thread = Thread(target=self._encode, name="encode", daemon=True)
            self._thread.start()
            stack.callback(self._stop)
            self._stack = stack.pop_all()

    def write(self, frame, time=None):
        """Write a frame, uint8 RGB [H, W, 3], else ValueError. The array must not be changed afterwards.

        time: seconds from the first frame. Without it, the frames have a constant rate. With it, the previous frame is
        repeated until then, and a frame that is more than one frame early is dropped.
        """
        if frame.shape != (self.size[1], self.size[0], 3) or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype} {list(frame.shape)}, expected uint8 RGB of {self.size}")
        if any(self._padding):
            frame = cv2.copyMakeBorder(frame, 0, self._padding[0], 0, self._padding[1], cv2.BORDER_REPLICATE)
        if time is not None and self.frames > round(time * self.rate) + 1:  # an early frame may be jitter
            return
        while self._last is not None and time is not None and self.frames < round(time * self.rate):
            self._put(self._last)
        self._put(np.ascontiguousarray(frame))
        self._last = frame

    def _put(self, frame):
        if self._error:
            raise self._error
        self._queue.put(frame)
        self.frames += 1

    def _encode(self):
        """Move frames from the queue to ffmpeg (in the thread); after an error, discard them."""
        with closing(self._raw):
            frame = None  # starts ffmpeg
            while frame is not _END:
                started = time.perf_counter()
                try:
                    if not self._error:
                        self._raw.send(frame)
                except (OSError, RuntimeError):  # RuntimeError: there is no ffmpeg
                    self._error = InputError(f"{self.path}: can't be written, the encoder stopped; is the disk full?")
                self.seconds += time.perf_counter() - started
                frame = self._queue.get()

    def _stop(self):
        """Let the encoder finish."""
        if self._thread.is_alive():
            self._queue.put(_END)
            self._thread.join()

    def _finish(self):
        """Join the frames and the sound in the target."""
        started = time.perf_counter()
        self._stop()
        if self._error or not self.frames:
            raise self._error or InputError(f"{self.path}: not written, there was no frame")
        source, sound = self.source, self.source.info.sound if self.source else ()
        copied = _COPIED_SOUND.get(self.path.suffix.lower().replace("m4v", "mp4"), set(sound))
        inputs, attempts = ["-i", url(self._silent)], [["-map", "0:v"]]
        if sound:
            start, origin = source.info.start, source.info.origin
            inputs = ["-copyts", "-itsoffset", f"{start:.6f}", *inputs]
            inputs += ["-itsoffset", f"{-origin:.6f}", *READ_ONLY_FILES, "-i", url(source.path)]
            codecs = [f"-c:a:{track} {'copy' if codec in copied else 'aac'}" for track, codec in enumerate(sound)]
            tracks = ["-map", "0:v", "-map", "1:a", "-map_chapters", "-1"]
            if not source.complete or source.missing or self.frames < source.decoded:  # the sound ends with the frames
                tracks += ["-t", f"{start + float(self.frames / self.rate):.6f}"]
            first = ["-map", "0:v", "-map", "1:a:0", *tracks[4:], *codecs[0].split()]  # phones add unknown tracks
            attempts = [[*tracks, *" ".join(codecs).split()], [*tracks, "-c:a", "aac"], first, *attempts]
        for output in attempts:
            target = ["-c:v", "copy", "-movflags", "+faststart", url(self._target)]
            count = ["-map", "0:v", "-c", "copy", "-f", "framecrc", "-"]  # a line for each frame
            done = run(["-y", "-v", "error", *inputs, *output, *target, *count])
            if not done.returncode and len(re.findall(rb"^0,", done.stdout, re.M)) == self.frames:
                break
        else:
            raise InputError(f"{self.path}: can't be written ({reason(done.stderr)}); is the disk full?")
        if sound and output in attempts[2:]:
            lost = "the sound" if output is attempts[3] else "all sound tracks but the first"
            self.notes.append(f"{self.path}: {lost} of {source.path} can't be kept")
        self.seconds += time.perf_counter() - started

    def __exit__(self, kind, error, trace):
        with self._stack:
            if kind is not None:
                self._stack.__exit__(kind, error, trace)
                return
            self._finish()


def _queue_length(size):
    """Return the maximum number of queued frames of a size (width, height)."""
    return int(min(max(_QUEUE_BYTES // (size[0] * size[1] * 3), 2), 16))
