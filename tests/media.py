"""Make videos with ffmpeg and inspect them with it, independently of the project's own reader and writer."""

import re
import subprocess
from fractions import Fraction

import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
PCM = ["-ac", "1", "-f", "f32le", "-"]
X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]


def ffmpeg(*arguments):
    """Run ffmpeg and return its stdout as bytes. Fails with its log."""
    done = subprocess.run(
        [FFMPEG, "-v", "error", "-y", "-nostdin", *map(str, arguments)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def make_video(path, size="64x48", *, rate="25", frames=10, extra=(), sound=None, source="testsrc2"):
    """Write a short clip of ffmpeg's moving test pattern, with a tone of `sound` seconds if given."""
    tone = ["-f", "lavfi", "-i", f"sine=frequency=440:duration={sound}"] if sound else []
    pattern = f"{source}{':' if '=' in source else '='}size={size}:rate={rate}"
    codec = [] if "-c:v" in extra or "-c" in extra else X264
    ffmpeg("-f", "lavfi", "-i", pattern, *tone, "-frames:v", frames, *codec, *extra, f"file:{path}")
    return path


def make_flashes(path, extra=(), seconds=3, rate="25", filters="null"):
    """Write a dark clip that flashes white and beeps for 80 ms at every full second from 1 on."""
    flash = f"color=black:s=64x48:r={rate}:d={seconds},drawbox=c=white:t=fill:enable='gte(t,.99)*lt(mod(t+.01,1),.08)'"
    beep = f"aevalsrc=0.8*sin(2*PI*1000*t)*gte(t\\,1)*lt(mod(t\\,1)\\,0.08):s=48000:d={seconds}"
    ffmpeg("-f", "lavfi", "-i", f"{flash},{filters}", "-f", "lavfi", "-i", beep, *X264, *extra, f"file:{path}")
    return path


def header(path):
    """Return what ffmpeg prints about a file."""
    done = subprocess.run([FFMPEG, "-hide_banner", "-i", f"file:{path}"], capture_output=True, check=False)
    return done.stderr.decode()


def packets(path, stream="0:v:0"):
    """Return the seconds per tick (Fraction), and the times in ticks of a stream's packets, in display order."""
    text = ffmpeg("-copyts", "-i", f"file:{path}", "-map", stream, "-c", "copy", "-f", "framecrc", "-").decode()
    shown = [
        line for line in text.splitlines() if not line.startswith("#") and "F=0x4" not in line and "F=0x5" not in line
    ]
    rows = [line.split(",") for line in shown]
    return Fraction(re.search(r"#tb 0: (\S+)", text)[1]), sorted(int(row[2]) for row in rows)


def rate_of(path):
    """Return the exact frame rate of a video. Fails if its frames are not evenly spaced."""
    tick, times = packets(path)
    steps = set(np.diff(times).tolist())
    assert len(steps) == 1, f"not constant: {steps}"
    return 1 / (steps.pop() * tick)


def decode(path, size, pixels="rgb24"):
    """Return all frames as ffmpeg decodes them: uint8 [N, H, W, 3]."""
    filters = f"scale=flags=bilinear+full_chroma_int+accurate_rnd,format={pixels}"
    raw = ffmpeg(
        "-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", filters, "-f", "rawvideo", "-"
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


def flash_times(path, size=(64, 48)):
    """Return the seconds, on the file's own clock, at which the frames turn white."""
    tick, times = packets(path)
    bright = decode(path, size).mean(axis=(1, 2, 3)) > 128
    assert len(bright) == len(times)
    return [float(times[i] * tick) for i in range(1, len(bright)) if bright[i] and not bright[i - 1]]


def beep_times(path):
    """Return the seconds, on the file's own clock, at which the beeps begin."""
    resample = "aresample=48000:async=1:first_pts=0"
    raw = ffmpeg("-copyts", "-i", f"file:{path}", "-map", "0:a:0", "-af", resample, *PCM)
    loud = np.convolve(np.abs(np.frombuffer(raw, np.float32)), np.ones(96) / 96, "same") > 0.2
    return (np.flatnonzero(loud[1:] & ~loud[:-1]) / 48000).tolist()


def sound_length(path):
    """Return the seconds from the file's zero to the end of its sound; 0 if it has none."""
    if "Audio:" not in header(path):
        return 0.0
    raw = ffmpeg("-copyts", "-i", f"file:{path}", "-map", "0:a:0", "-af", "aresample=8000:async=1:first_pts=0", *PCM)
    return len(raw) / 4 / 8000
