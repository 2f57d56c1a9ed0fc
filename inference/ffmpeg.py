"""The ffmpeg program that imageio-ffmpeg brings: starting it, and asking it what a video file holds.

No ffprobe comes with it. What a file holds is read from the header that ffmpeg prints and from its list of packets
(`-c copy -f framecrc`, which reads the file once and decodes nothing).
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.timing import steady
from utils.errors import InputError

# Exact both ways: without them swscale's quick paths darken every picture by one level on its way to RGB and back.
SCALE_FLAGS = "flags=bicubic+full_chroma_int+accurate_rnd"
# Not videos, though ffmpeg can draw them: text as a terminal shows it, and the like.
FORMATS_WITHOUT_PICTURES = {"tty", "bin", "xbin", "adf", "idf", "data"}
NO_TIMESTAMP = -(2**63)
DISCARD, CORRUPT = 4, 2  # packet flags of libavcodec
# Of a frame: 8192x4320 and its decoder's margins. Dozens of frames are in memory at a time, and a header may claim
# 16384 pixels each way where there is nothing.
MOST_PIXELS = 36_000_000
# For reading a file: no network, and no frame above those pixels.
WITHIN_LIMITS = ["-protocol_whitelist", "file,data,crypto", "-max_pixels", str(MOST_PIXELS)]


@dataclass(frozen=True)
class Colours:
    """How a video's YUV is to be read, in ffmpeg's names; None where the file doesn't say."""

    matrix: str | None = None
    primaries: str | None = None
    transfer: str | None = None
    range: str | None = None


# What we write where there is no YUV to keep to (RGB videos, cameras): what a browser expects.
HD_COLOURS = Colours("bt709", "bt709", "bt709", "tv")


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its first video stream (and its sound) before anything of it is decoded."""

    path: Path  # of its content: a pipe's copy
    times: np.ndarray  # float64 [packets], seconds in order of showing, the first at 0; empty where the file has none
    tick: float  # seconds, the resolution of those times
    packets: int  # pictures the file lists and still holds
    expected: int  # pictures it announces (more than `packets` where it is cut off)
    damaged: bool  # cut off, or with packets known to be corrupt
    tail: float  # seconds that the last picture is shown, 0 where unknown
    late: float  # seconds that the first picture's time is too early by (AVI only)
    colours: Colours
    pixel_aspect: str  # "1:1" for square pixels; as stored, before any rotation
    rotation: float  # degrees
    sound: tuple[str, ...]  # codec of each sound track
    picture_start: float  # seconds on the file's own clock
    sound_start: float  # seconds on the same clock


def executable():
    """Path of the ffmpeg program. Raises InputError where there is none."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise InputError(
            "no ffmpeg program found: pip install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to one"
        ) from None


def as_input(path):
    """The file as ffmpeg's -i and output take it whatever its name: a leading dash, a colon, a percent sign."""
    return f"file:{Path(path).absolute()}"


def start(arguments, **streams):
    """Start ffmpeg with these arguments; Ctrl-C in the terminal doesn't reach it, so that its file can be closed."""
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    else:
        apart = {"start_new_session": True}
    return subprocess.Popen([executable(), "-hide_banner", "-nostats", *arguments], **streams, **apart)


def last_words(lines):
    """The most telling of ffmpeg's log lines, in one line, without its addresses."""
    lines = [re.sub(r"^(\[[^\]]*\] ?)+", "", line).strip() for line in lines]
    lines = [line for line in lines if line and "Conversion failed" not in line and not line.startswith("frame=")]
    return lines[-1] if lines else "no reason given"


def probe(path, copy=None):
    """Ask ffmpeg what is in a video file: VideoInfo.

    copy: where its content lies, if not where the user says (a pipe).
    Raises InputError where the file is missing, empty, not readable, not a video, or only sound.
    """
    path = Path(path)
    check_file(path)
    content = Path(copy or path)
    process = start(
        ["-nostdin", "-copyts", *WITHIN_LIMITS, "-i", as_input(content)]
        + ["-map", "0:V:0", "-map", "0:a?", "-c", "copy", "-f", "framecrc", "-"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    from threading import Thread

    log = []
    listener = Thread(target=lambda: log.extend(process.stderr), daemon=True)
    listener.start()
    try:
        packets = read_packets(process.stdout)
    finally:
        process.stdout.close()
        process.wait()
        listener.join()
        process.stderr.close()
    log = [line.decode("utf-8", "replace").rstrip() for line in log]
    return understand(path, content, log, packets)


def check_file(path):
    """Raise InputError unless there is a readable, non-empty file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a video file")
    if not path.exists():
        raise InputError(f"{path}: no such file; check the name")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): copy or download it again")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} can't be read: check its permissions")


@dataclass
class Packets:
    """What framecrc lists, by stream: 0 is the picture, the others are sound."""

    clock: dict  # stream -> seconds a tick
    times: list  # ticks, of the pictures that are to be shown
    first: dict  # stream -> ticks of its first packet
    end: float = -np.inf  # seconds, of the last packet of all
    start: float = np.inf  # seconds, of the first packet of all
    tail: int = 0  # ticks, duration of the picture shown last
    corrupt: bool = False


def read_packets(lines):
    """Read framecrc's output (`stream, dts, pts, duration, size, checksum[, F=flags]...`)."""
    packets = Packets({}, [], {})
    last = NO_TIMESTAMP
    for raw in lines:
        if raw.startswith(b"#tb "):
            stream, clock = raw[4:].split(b":")
            numerator, denominator = clock.split(b"/")
            packets.clock[int(stream)] = int(numerator) / int(denominator)
        if raw.startswith(b"#"):
            continue
        fields = raw.split(b",")
        stream, time, duration = int(fields[0]), int(fields[2]), int(fields[3])
        flags = next((int(field.strip()[2:], 16) for field in fields[6:] if field.strip().startswith(b"F=")), 0)
        if flags & DISCARD:
            continue
        packets.corrupt |= stream == 0 and bool(flags & CORRUPT)
        if time != NO_TIMESTAMP:
            tick = packets.clock[stream]
            packets.first[stream] = min(time, packets.first.get(stream, time))
            packets.start = min(packets.start, time * tick)
            packets.end = max(packets.end, (time + duration) * tick)
        if stream == 0:
            packets.times.append(time)
            if time >= last:
                last, packets.tail = time, duration
    return packets


def understand(path, content, log, packets):
    """Join ffmpeg's header (its log lines) and its list of packets in a VideoInfo; InputError where it's no video."""
    text = "\n".join(log).replace(as_input(content), "")  # a name may hold lines that look like ffmpeg's
    refuse_large(path, text)
    header = text.split("Output #0")[0]
    kind = re.search(r"^Input #0, (\S+), from", header, re.MULTILINE)
    if kind is None:
        reason = last_words(log)
        if "moov atom not found" in text:
            reason = "it is broken off before its index (moov), or not an MP4 at all"
        raise InputError(f"{path} can't be read as a video: {reason}")
    if kind[1].rstrip(",").split(",")[0] in FORMATS_WITHOUT_PICTURES:
        raise InputError(f"{path} is not a video but text or plain data: name a video file")
    video = re.search(r"^  Stream #0:\d+.*?: Video: (.*)$(\n(?!  Stream #).*)*", header, re.MULTILINE)
    if video is None or not packets.times:
        what = "it holds no picture stream" if video is None else "no picture of it is left"
        raise InputError(f"{path} can't be read as a video: {what}")

    tick = packets.clock[0]
    times = np.array(packets.times, np.int64)
    counted = len(times)
    times = steady((np.sort(times) - times.min()) * tick) if NO_TIMESTAMP not in times else np.empty(0)
    late = late_start(times) if kind[1].startswith("avi") else 0.0
    times[1:] -= late
    sound = tuple(re.findall(r"^  Stream #0:\d+.*?: Audio: (\w+)", header, re.MULTILINE))
    starts = {stream: first * packets.clock[stream] for stream, first in packets.first.items()}
    picture_start = starts.pop(0, 0.0) + late
    expected = counted_in_whole(content, header, packets, times) or counted
    rotation = re.search(r"rotation of (-?[\d.]+) degrees", video[0])
    aspect = re.search(r"\bSAR (\d+:\d+)", video[1])
    return VideoInfo(
        path=content,
        times=times,
        tick=tick,
        packets=counted,
        expected=max(expected, counted),
        damaged=packets.corrupt or expected > counted,
        tail=packets.tail * tick,
        late=late,
        colours=read_colours(video[1]),
        pixel_aspect=aspect[1] if aspect and "0" not in aspect[1].split(":") else "1:1",
        rotation=float(rotation[1]) if rotation else 0.0,
        sound=sound,
        picture_start=picture_start,
        sound_start=min(starts.values(), default=picture_start),
    )


def refuse_large(path, log):
    """Raise InputError where ffmpeg's log, without the file's name, says that a picture has more than MOST_PIXELS."""
    if size := re.search(r"Picture size (\d+x\d+) exceeds specified max pixel count", log):
        raise InputError(
            f"{path}: its pictures are {size[1]}, larger than the 8192x4320 that are read; make it smaller, "
            "as with ffmpeg's filter scale"
        )


def late_start(times):
    """Seconds by which an AVI's first picture is listed too early.

    AVI can't say that the pictures begin after the sound: where they do, the first one stands at 0 all the same, two
    intervals before the second.
    """
    steps = np.diff(times)
    interval = steps[1:].min() if len(steps) > 1 else 0.0
    return interval if interval and np.allclose(steps[1:], interval) and np.isclose(steps[0], 2 * interval) else 0.0


def counted_in_whole(path, header, packets, times):
    """Pictures that the container announces where it is cut off; None where it ends as announced, or doesn't say."""
    duration = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", header)
    if not duration or "Estimating duration from bitrate" in header or len(times) < 2:
        return None
    duration = int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3])
    interval = times[-1] / (len(times) - 1)
    if packets.end - packets.start >= duration - max(0.1, 1.5 * interval):
        return None
    import cv2

    # MP4 and AVI keep an exact count for the picture stream, which only OpenCV hands on; else: for as long as the file.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    return count if count > 0 else round(duration / interval)


def read_colours(description):
    """Colours from ffmpeg's stream description, as in `h264 (High), yuv420p(tv, bt709, progressive), 640x360, ...`."""
    pixels = re.search(r", ([a-z][a-z0-9]+)(?:\(([^)]*)\))?, \d+x\d+", description)
    if pixels is None:
        return Colours()
    if re.match(r"(gbr|rgb|bgr|argb|abgr|pal8|0rgb|0bgr|x2rgb|x2bgr)", pixels[1]):
        return HD_COLOURS
    extent, names = None, (None, None, None)
    for part in (pixels[2] or "").split(", "):
        if part in ("tv", "pc"):
            extent = "tv"  # what we write is limited whatever came; the colours stay, only their coding changes
        elif part in MATRICES or "/" in part:
            names = part.split("/") if "/" in part else (part,) * 3
    if pixels[1].startswith("yuvj"):
        extent = "tv"
    matrix, primaries, transfer = names
    return Colours(
        matrix if matrix in MATRICES else None,
        primaries if primaries in PRIMARIES else None,
        transfer if transfer in TRANSFERS else None,
        extent,
    )


# ffmpeg's names, as its log prints them and its setparams filter takes them. The matrices stand with swscale's name.
MATRICES = {"bt709": "bt709", "smpte170m": "bt601", "bt470bg": "bt601", "fcc": "fcc"}
MATRICES |= {"smpte240m": "smpte240m", "bt2020nc": "bt2020", "bt2020c": "bt2020"}
PRIMARIES = {"bt709", "bt470m", "bt470bg", "smpte170m", "smpte240m", "film", "bt2020", "smpte431", "smpte432"}
TRANSFERS = {"bt709", "smpte170m", "smpte240m", "linear", "iec61966-2-1", "bt2020-10", "bt2020-12"}
TRANSFERS |= {"smpte2084", "arib-std-b67"}


def colour_filter(colours):
    """ffmpeg filters that turn whatever comes into yuv420p of these colours, and say so in the file."""
    scale = f"scale={SCALE_FLAGS}:out_range=tv"
    if colours.matrix:
        scale += f":out_color_matrix={MATRICES[colours.matrix]}"
    return f"{scale},format=yuv420p,{colour_tags(colours)}"


def colour_tags(colours):
    """ffmpeg filter that only says that the pictures have these colours."""
    tags = (colours.range, colours.matrix, colours.primaries, colours.transfer)
    names = ("range", "colorspace", "color_primaries", "color_trc")
    said = ":".join(f"{name}={tag or 'unknown'}" for name, tag in zip(names, tags, strict=True))
    return f"setparams={said}"
