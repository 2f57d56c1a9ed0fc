"""Videos and cameras: VideoReader, VideoWriter and CameraReader. Every frame is uint8 RGB [H, W, 3].

ffmpeg does the work, through imageio-ffmpeg: it decodes to a constant frame rate and encodes to H.264, each in a process
of its own, and a thread with a bounded queue keeps it busy while the network computes.
"""

import logging
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Empty, Queue
from threading import Condition, Thread

import cv2
import imageio_ffmpeg
import numpy as np

from utils.errors import InputError
from utils.files import check_regular, whole_file

CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv")  # that hold H.264
# Sound codecs that a container holds and players know; any other becomes AAC. Matroska holds all.
_COPIED_SOUND = {".mp4": {"aac", "mp3", "ac3", "opus", "flac"}, ".mov": {"aac", "mp3", "ac3", "alac"}}
_NOT_VIDEO = {"tty", "bin", "xbin", "adf", "idf", "data"}  # text, which ffmpeg would render
# A header may claim 16384x16384 pixels where there are none; 8192x4320 and its decoder's margins are below this.
_MAX_PIXELS = 36_000_000
_MAX_RATE = 240
_QUEUE_BYTES = 96 * 2**20
_READ_ONLY_FILES = ["-protocol_whitelist", "file,crypto,data", "-max_pixels", str(_MAX_PIXELS)]
_THREADS = ["-threads", str(min(os.cpu_count() or 1, 8))]  # each holds frames, and more hardly help
# Without the last two flags, swscale darkens every frame by one level on its way to RGB, though not on the way back.
_TO_RGB = "scale=flags=bilinear+full_chroma_int+accurate_rnd"
_BT709 = "range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_END = object()
CAMERA_TIMEOUT = 10.0  # seconds without a frame, after which a camera counts as gone


class VideoReader:
    """Frames of a video file, upright and at a constant rate, decoded ahead in a thread.

    Iterating, which is possible once, yields uint8 RGB [H, W, 3] arrays that the caller may change. A video with a
    variable frame rate gets its nominal one: frames are repeated or dropped, and the length stays.

    Attributes:
        size: (width, height) in pixels, after rotation.
        rate: frames per second, a Fraction.
        expected: number of frames that the file announces, None if unknown.
        decoded: number of frames so far. complete: whether the end was reached.
        seconds: time spent waiting for the decoder.
        info: VideoInfo.

    Raises:
        InputError: the file is missing, unreadable, or not a video.
    """

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
        filters += ["setpts=PTS-STARTPTS", f"{_TO_RGB}{matrix}", "format=rgb24"]
        self._raw = imageio_ffmpeg.read_frames(
            _url(self.path),
            input_params=["-nostats", *_READ_ONLY_FILES, *_THREADS],
            output_params=["-map", "0:V:0", "-vf", ",".join(filters), "-fps_mode", "cfr", "-r", str(self.rate)],
        )
        try:
            announced = tuple(next(self._raw)["size"])
        except Exception as error:  # its parser fails in many ways
            raise InputError(f"{path}: can't be read as a video") from error
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
                    self._queue.put(np.frombuffer(bytearray(data), np.uint8).reshape(height, width, 3))
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
        """Number of frames that were announced but not decoded; 0 before the end is reached."""
        if not self.complete or self.expected is None or self.decoded >= self.expected - 1:
            return 0
        video_end, file_end = _ends(self.path)
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class VideoWriter:
    """Write RGB frames as an H.264 video (BT.709, yuv420p, index in front) with the sound of `source`.

    As a context manager it finishes the file at the end, also when that comes early. After an exception nothing
    remains, and an earlier file of that name stays.

    Args:
        path: target, with one of the suffixes CONTAINERS.
        size: (width, height) of the frames. Odd sides grow by one pixel, which H.264 needs.
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
        check_container(path)
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
            self._images = self._target.with_suffix(f".frames{self.path.suffix}")  # without sound
            stack.callback(self._images.unlink, missing_ok=True)
            self._images.touch()
            self._raw = imageio_ffmpeg.write_frames(
                _url(self._images),
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
        """Write a frame, uint8 RGB [H, W, 3], which must not be changed afterwards.

        time: seconds from the first frame. Without it, frames follow each other at the constant rate; with it, the
        frame before is repeated for as long as it was shown.
        """
        if frame.shape != (self.size[1], self.size[0], 3) or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype} {list(frame.shape)}, expected uint8 RGB of {self.size}")
        if any(self._padding):
            frame = cv2.copyMakeBorder(frame, 0, self._padding[0], 0, self._padding[1], cv2.BORDER_REPLICATE)
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
        """Move frames from the queue to ffmpeg (in the thread); after an error only empty the queue."""
        with closing(self._raw):
            self._raw.send(None)
            while (frame := self._queue.get()) is not _END:
                started = time.perf_counter()
                try:
                    if not self._error:
                        self._raw.send(frame)
                except OSError:
                    self._error = InputError(f"{self.path}: can't be written, the encoder stopped; is the disk full?")
                self.seconds += time.perf_counter() - started

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
        inputs, ways = ["-i", _url(self._images)], [["-map", "0:v"]]
        if sound:
            start, origin = source.info.start, source.info.origin
            inputs = ["-copyts", "-itsoffset", f"{start:.6f}", *inputs]
            inputs += ["-itsoffset", f"{-origin:.6f}", *_READ_ONLY_FILES, "-i", _url(source.path)]
            codecs = [f"-c:a:{track} {'copy' if codec in copied else 'aac'}" for track, codec in enumerate(sound)]
            tracks = ["-map", "0:v", "-map", "1:a", "-map_chapters", "-1"]
            if not source.complete or source.missing:  # the sound ends with the frames
                tracks += ["-t", f"{start + float(self.frames / self.rate):.6f}"]
            ways = [[*tracks, *" ".join(codecs).split()], [*tracks, "-c:a", "aac"], *ways]
        for way in ways:
            target = ["-c:v", "copy", "-movflags", "+faststart", _url(self._target)]
            count = "-map 0:v -c copy -f framecrc -".split()  # a line for each frame
            done = _run(["-y", "-v", "error", *inputs, *way, *target, *count])
            if not done.returncode and len(re.findall(rb"^0,", done.stdout, re.M)) == self.frames:
                break
        else:
            raise InputError(f"{self.path}: can't be written ({_reason(done.stderr)}); is the disk full?")
        if sound and way is ways[-1]:
            self.notes.append(f"{self.path}: the sound of {source.path} can't be kept")
        self.seconds += time.perf_counter() - started

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        with self._stack:
            if kind is not None:
                self._stack.__exit__(kind, error, trace)
                return
            self._finish()


@dataclass(frozen=True)
class VideoInfo:
    """What ffmpeg reports about the first video stream of a file, and about its sound."""

    size: tuple[int, int]  # (width, height), after rotation
    rate: Fraction  # frames per second
    duration: float  # seconds, of the longest stream; 0 if unknown
    origin: float  # seconds, the first time stamp of all streams
    start: float  # seconds from there to the first frame
    sound: tuple[str, ...]  # codec of each track
    pixel_aspect: str  # "1/1" for square pixels
    interlaced: bool
    untagged_hd: bool  # the file does not say how its colors are coded; players assume BT.709


def probe(path):
    """Decode the first frame of a video file: its VideoInfo.

    Raises:
        InputError: the file is missing, unreadable, or not a video.
    """
    try:
        check_regular(path)
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    if not size:
        raise InputError(f"{path}: the file is empty; copy or download it again")
    first_frame = ["-map", "0:V:0", "-frames:v", "1", "-fps_mode", "passthrough", "-enc_time_base", "demux"]
    done = _run(["-copyts", *_READ_ONLY_FILES, "-i", _url(path), *first_frame, "-f", "framecrc", "-"])
    log = done.stderr.decode("utf-8", "replace").replace(_url(path), "")  # a name may look like a part of the log
    source, _, output = log.partition("Output #0")
    kind = re.search(r"^Input #0, (\w+)", source, re.M)
    if kind and kind[1] in _NOT_VIDEO:
        raise InputError(f"{path}: not a video but text or plain data")
    time_base = re.search(rb"#tb 0: (\d+)/(\d+)", done.stdout)
    frame = re.search(rb"^0, *-?\d+, *(-?\d+)", done.stdout, re.M)
    shape = re.search(
        r"Video: rawvideo.*?, (\w+)(\((?:[^()]|\([^()]*\))*\))?, (\d+)x(\d+)(?:.*?SAR (\d+):(\d+))?", output
    )
    if not (kind and time_base and frame and shape):
        raise InputError(f"{path}: can't be read as a video ({_reason(done.stderr)})")
    pixels, colors, width, height, wide, high = shape.groups()
    rates = re.search(
        r"Video: (?!.*\(attached pic\)).*?(?:, ([\d.]+k?) fps)?(?:, ([\d.]+k?) tbr)?(, [\d.]+k? tbn|$)", source, re.M
    )
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", source)
    origin = re.search(r"Duration: .*?, start: (-?[\d.]+)", source)
    origin = float(origin[1]) if origin else 0.0
    tagged = re.search(r"[( ](bt|smpte|fcc|ycgco|ictcp|gbr)", colors or "")
    return VideoInfo(
        size=(int(width), int(height)),
        rate=_nominal_rate(path, *rates.groups()[:2]),
        duration=int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3]) if length else 0.0,
        origin=origin,
        start=int(frame[1]) * int(time_base[1]) / int(time_base[2]) - origin,
        sound=tuple(re.findall(r"^ *Stream #0:\d+.*?: Audio: (\w+)", source, re.M)),
        pixel_aspect=f"{wide}/{high}" if wide and int(wide) and int(high) else "1/1",
        interlaced=bool(re.search(r"(top|bottom) (coded )?first", log)),
        untagged_hd=pixels.startswith("yuv") and not tagged and (int(width) >= 1280 or int(height) > 576),
    )


def _nominal_rate(path, average, lowest):
    """Return the frame rate of a video as a Fraction.

    ffmpeg prints the average rate ("fps") and the lowest one that holds all time stamps ("tbr"). These are equal in a
    constant-rate video. A few late frames lower the average and multiply the other one.
    """
    average, lowest = (float((text or "0").replace("k", "e3")) for text in (average, lowest))
    rate = lowest if average <= lowest <= 1.5 * average else average or lowest
    if not 0 < rate <= _MAX_RATE:  # time stamps in milliseconds and no rate: measure it
        with suppress(RuntimeError, ValueError):
            count, seconds = imageio_ffmpeg.count_frames_and_secs(_url(path))
            rate = round(min(count / max(seconds, 1 / _MAX_RATE), _MAX_RATE))
    if not 0 < rate <= _MAX_RATE:
        rate = 25
    # It is rounded to two decimals: 29.97 is 30000/1001, 23.98 is 24000/1001 and 8.33 is 25/3.
    ntsc = Fraction(round(rate) * 1000, 1001)
    if round(float(ntsc), 2) == rate:
        return ntsc
    candidates = (Fraction(rate).limit_denominator(limit) for limit in range(1, 101))
    return next(candidate for candidate in candidates if abs(candidate - Fraction(rate)) <= Fraction(1, 199))


def _ends(path):
    """Read the packets of a file: seconds at which its video ends, and at which all of it ends."""
    done = _run([*_READ_ONLY_FILES, "-i", _url(path), *"-map 0:V:0 -map 0:a? -c copy -f framecrc -".split()])
    ticks = {int(stream): Fraction(tick.decode()) for stream, tick in re.findall(rb"#tb (\d+): (\S+)", done.stdout)}
    ends = dict.fromkeys(ticks, Fraction(0))
    for line in done.stdout.splitlines():
        fields = line.split(b",")
        hidden = len(fields) > 6 and b"F=0x" in fields[6] and int(fields[6].split(b"=")[1], 16) & 4
        if line[:1].isdigit() and not hidden:
            stream, _, shown, duration = map(int, fields[:4])
            ends[stream] = max(ends[stream], (shown + duration) * ticks[stream])
    return ends.get(0, Fraction(0)), max(ends.values(), default=Fraction(0))


def _url(path):
    """A file as ffmpeg takes it whatever its name: a leading dash, a colon, a percent sign."""
    return f"file:{Path(path).absolute()}"


def _run(arguments):
    """Run ffmpeg to its end; Ctrl-C in the terminal does not reach it."""
    apart = {"start_new_session": True} if os.name == "posix" else {}
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, **apart)


def _reason(log):
    """The most telling line of ffmpeg's log."""
    lines = [re.sub(r"^(\[[^]]*\] *)+", "", line).strip() for line in log.decode("utf-8", "replace").splitlines()]
    telling = [line for line in lines if "exceeds specified max pixel count" in line or "moov atom not found" in line]
    return (telling or [line for line in lines if line] or ["ffmpeg gives no reason"])[-1]


def _queue_length(size):
    """Number of frames of a size that may wait."""
    return int(min(max(_QUEUE_BYTES // (size[0] * size[1] * 3), 2), 16))


def check_container(path):
    """Raise InputError unless a video can be written under this name."""
    if Path(path).suffix.lower() not in CONTAINERS:
        raise InputError(f"{path}: a video is written as {', '.join(CONTAINERS)}; choose such a name")


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
        level = cv2.setLogLevel(0)  # its own warnings don't name the remedy
        self._capture = cv2.VideoCapture(source)
        found, frame = self._capture.read() if self._capture.isOpened() else (False, None)
        cv2.setLogLevel(level)
        if not found:
            self._capture.release()
            raise InputError(f"{self.name}: no frame; is it connected, and not in use by another program?")
        self.size = frame.shape[1], frame.shape[0]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if 1 <= rate <= _MAX_RATE else Fraction(30)
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
