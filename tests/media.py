"""Make videos with ffmpeg and inspect what was written, independently of the project's own reader and writer."""

import re
import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
PCM = ["-ac", "1", "-f", "f32le", "-"]
X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]


def ffmpeg(*arguments):
    """Run ffmpeg and return its stdout as bytes. Fails with its log."""
    command = [FFMPEG, "-v", "error", "-y", "-nostdin", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def make_video(path, size="64x48", *, rate="25", frames=10, extra=(), sound=None, source="testsrc2"):
    """Write a short clip of ffmpeg's moving test pattern, with a tone of `sound` seconds if given."""
    tone = ["-f", "lavfi", "-i", f"sine=frequency=440:duration={sound}"] if sound else []
    pattern = f"{source}{':' if '=' in source else '='}size={size}:rate={rate}"
    codec = [] if "-c:v" in extra or "-c" in extra else X264
    ffmpeg("-f", "lavfi", "-i", pattern, *tone, "-frames:v", frames, *codec, *extra, f"file:{path}")
    return path


def make_flashes(path, extra=(), filters="null"):
    """Write a dark clip of three seconds that flashes white and beeps for 80 ms at every full second from 1 on."""
    flash = "color=black:s=64x48:r=25:d=3,drawbox=c=white:t=fill:enable='gte(t,.99)*lt(mod(t+.01,1),.08)'"
    beep = "aevalsrc=0.8*sin(2*PI*1000*t)*gte(t\\,1)*lt(mod(t\\,1)\\,0.08):s=48000:d=3"
    ffmpeg("-f", "lavfi", "-i", f"{flash},{filters}", "-f", "lavfi", "-i", beep, *X264, *extra, f"file:{path}")
    return path


def names(folder="."):
    """Return the sorted names of what is in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


def info(path):
    """Return what ffmpeg prints about a file."""
    done = subprocess.run([FFMPEG, "-hide_banner", "-i", f"file:{path}"], capture_output=True, check=False)
    return done.stderr.decode()


def frame_times(path):
    """Return the seconds (Fractions), on the file's own clock, of a video's frames that are shown, in order."""
    text = ffmpeg("-copyts", "-i", f"file:{path}", "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "-").decode()
    tick = Fraction(re.search(r"#tb 0: (\S+)", text)[1])
    shown = re.findall(r"^\d+, *\S+, *(\S+),(?!.*F=0x[45])", text, re.M)
    return sorted(int(time) * tick for time in shown)


def rate_of(path):
    """Return the exact frame rate of a video. Fails if its frames are not evenly spaced."""
    steps = set(np.diff(frame_times(path)).tolist())
    assert len(steps) == 1, f"not constant: {steps}"
    return 1 / steps.pop()


def decode(path, size):
    """Return all frames as ffmpeg decodes them: uint8 [N, H, W, 3]."""
    filters = ["-vf", "scale=flags=bilinear+full_chroma_int+accurate_rnd,format=rgb24"]
    raw = ffmpeg("-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough", *filters, "-f", "rawvideo", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


def flash_times(path):
    """Return the seconds, on the file's own clock, at which the frames of 64x48 turn white."""
    times, bright = frame_times(path), decode(path, (64, 48)).mean(axis=(1, 2, 3)) > 128
    assert len(bright) == len(times)
    return [float(times[i]) for i in range(1, len(bright)) if bright[i] and not bright[i - 1]]


def beep_times(path):
    """Return the seconds, on the file's own clock, at which the beeps begin."""
    resample = "aresample=48000:async=1:first_pts=0"
    raw = ffmpeg("-copyts", "-i", f"file:{path}", "-map", "0:a:0", "-af", resample, *PCM)
    loud = np.convolve(np.abs(np.frombuffer(raw, np.float32)), np.ones(96) / 96, "same") > 0.2
    return (np.flatnonzero(loud[1:] & ~loud[:-1]) / 48000).tolist()


def sound_length(path):
    """Return the seconds from the file's zero to the end of its sound; 0 if it has none."""
    if "Audio:" not in info(path):
        return 0.0
    raw = ffmpeg("-copyts", "-i", f"file:{path}", "-map", "0:a:0", "-af", "aresample=8000:async=1:first_pts=0", *PCM)
    return len(raw) / 4 / 8000
