"""Run ffmpeg, and parse what it reports about a video file."""

import os
import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import imageio_ffmpeg

from utils.errors import InputError
from utils.files import check_regular

_NOT_VIDEO = {"tty", "bin", "xbin", "adf", "idf", "data"}  # text, which ffmpeg would render
# A damaged header may claim 16384x16384 pixels. 8192x4320 with the decoder's margins is below this limit.
_MAX_PIXELS = 36_000_000
READ_ONLY_FILES = ["-protocol_whitelist", "file,crypto,data", "-max_pixels", str(_MAX_PIXELS)]


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
    """Decode the first frame of a video file and return its VideoInfo.

    Raises InputError if the file is missing, unreadable, or not a video.
    """
    try:
        check_regular(path)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    first_frame = ["-map", "0:V:0", "-frames:v", "1", "-fps_mode", "passthrough", "-enc_time_base", "demux"]
    done = run(["-copyts", *READ_ONLY_FILES, "-i", url(path), *first_frame, "-f", "framecrc", "-"])
    log = done.stderr.decode("utf-8", "replace").replace(url(path), "")  # a name may look like a part of the log
    source, _, output = log.partition("Output #0")
    kind = re.search(r"^Input #0, (\w+)", source, re.M)
    if kind and kind[1] in _NOT_VIDEO:
        raise InputError(f"{path}: a text or data file, not a video; name a video")
    time_base = re.search(rb"#tb 0: (\d+)/(\d+)", done.stdout)
    frame = re.search(rb"^0, *-?\d+, *(-?\d+)", done.stdout, re.M)
    shape = re.search(
        r"Video: rawvideo.*?, (\w+)(\((?:[^()]|\([^()]*\))*\))?, (\d+)x(\d+)(?:.*?SAR (\d+):(\d+))?", output
    )
    video = r"^ *Stream #0:.*?: Video: (?!.*\(attached pic\))"
    rates = re.search(video + r".*?(?:, ([\d.]+k?) fps)?(?:, ([\d.]+k?) tbr)?(, [\d.]+k? tbn|$)", source, re.M)
    if not (kind and time_base and frame and shape and rates):  # an iPhone's HEIC has no rates
        raise InputError(f"{path}: can't be read as video or image ({reason(done.stderr)}); get it again or convert it")
    pixels, colors, width, height, wide, high = shape.groups()
    length = re.search(r"^  Duration: (\d+):(\d+):([\d.]+)", source, re.M)
    origin = re.search(r"^  Duration: .*?, start: (-?[\d.]+)", source, re.M)
    origin = float(origin[1]) if origin else 0.0
    seconds = int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3]) if length else 0.0
    tagged = re.search(r"[( ](bt|smpte|fcc|ycgco|ictcp|gbr)", colors or "")
    return VideoInfo(
        size=(int(width), int(height)),
        rate=_nominal_rate(path, *rates.groups()[:2]),
        # Matroska's duration includes the time before the first time stamp.
        duration=seconds - origin * (kind[1] == "matroska"),
        origin=origin,
        start=int(frame[1]) * int(time_base[1]) / int(time_base[2]) - origin,
        sound=tuple(re.findall(r"^ *Stream #0:\d+.*?: Audio: (\w+)", source, re.M)),
        pixel_aspect=f"{wide}/{high}" if wide and int(wide) and int(high) else "1/1",
        interlaced=bool(re.search(r"^ *Stream #0:.*: Video: .*(top|bottom) (coded )?first", log, re.M)),
        untagged_hd=pixels.startswith("yuv") and not tagged and (int(width) >= 1280 or int(height) > 576),
    )


def _nominal_rate(path, average, lowest):
    """Return the frame rate of a video as a Fraction.

    ffmpeg prints the average rate ("fps") and the lowest one that holds all time stamps ("tbr"). They are equal in a
    constant-rate video. Pauses lower fps, and late frames multiply tbr.
    """
    average, lowest = (float((text or "0").replace("k", "e3")) for text in (average, lowest))
    rate = max(average, lowest)
    if lowest > 1.5 * average or not 1 <= rate < 1000:
        return _usual_rate(path)
    # ffmpeg rounds to two decimals: 29.97 is 30000/1001, 23.98 is 24000/1001 and 8.33 is 25/3.
    ntsc = Fraction(round(rate) * 1000, 1001)
    if rate != round(rate) and round(float(ntsc), 2) == rate:
        return ntsc
    candidates = (Fraction(rate).limit_denominator(limit) for limit in range(1, 101))
    return next(candidate for candidate in candidates if abs(candidate - Fraction(rate)) <= Fraction(1, 199))


def _usual_rate(path):
    """Measure the frame rate of a video without its pauses; a single frame has 25 per second."""
    ticks, packets = _packets(path)
    shown = sorted({time for stream, time, _ in packets if stream == 0})
    steps = [after - before for before, after in pairwise(shown)]
    if not steps:
        return Fraction(25)
    pause = 1.5 * median(steps)
    usual = fmean(step for step in steps if step < pause)
    measured = min(1 / (usual * ticks[0]), 240.0)
    nominal = (Fraction(round(measured)), Fraction(round(measured) * 1000, 1001))
    closest = min(nominal, key=lambda rate: abs(rate - measured))
    return closest if abs(closest - measured) < 0.01 * measured else Fraction(measured).limit_denominator(1000)


def stream_ends(path):
    """Return (end of the video, end of all streams) of a file in seconds, as Fractions."""
    ticks, packets = _packets(path)
    ends = dict.fromkeys(ticks, Fraction(0))
    for stream, shown, duration in packets:
        ends[stream] = max(ends[stream], (shown + duration) * ticks[stream])
    return ends.get(0, Fraction(0)), max(ends.values(), default=Fraction(0))


def _packets(path):
    """Read the packets of a file: ({stream: seconds per tick}, [(stream, time, duration)] in ticks); 0 is the video."""
    streams = ["-map", "0:V:0", "-map", "0:a?", "-map", "0:s?", "-c", "copy", "-f", "framecrc", "-"]
    done = run([*READ_ONLY_FILES, "-i", url(path), *streams])
    ticks = {int(stream): Fraction(tick.decode()) for stream, tick in re.findall(rb"#tb (\d+): (\S+)", done.stdout)}
    packets = []
    for line in done.stdout.splitlines():
        fields = line.split(b",")
        hidden = len(fields) > 6 and b"F=0x" in fields[6] and int(fields[6].split(b"=")[1], 16) & 4
        if line[:1].isdigit() and not hidden:
            stream, _, shown, duration = map(int, fields[:4])
            packets.append((stream, shown, duration))
    return ticks, packets


def url(path):
    """Return a path as a URL for ffmpeg. Dashes, colons and percent signs in the name are safe."""
    return f"file:{Path(path).absolute()}"


def run(arguments):
    """Run ffmpeg to its end; Ctrl-C in the terminal does not reach it."""
    apart = {"start_new_session": True} if os.name == "posix" else {}
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, **apart)


def reason(log):
    """Return the most informative line of ffmpeg's log."""
    lines = [re.sub(r"^(\[[^]]*\] *)+", "", line).strip() for line in log.decode("utf-8", "replace").splitlines()]
    telling = [line for line in lines if "exceeds specified max pixel count" in line or "moov atom not found" in line]
    return (telling or [line for line in lines if line] or ["ffmpeg gives no reason"])[-1]
