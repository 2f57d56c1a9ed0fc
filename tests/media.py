"""Videos made for a test by ffmpeg, and looked into by it: independent of the project's own reader and writer."""

import re
import subprocess
from fractions import Fraction

import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
PCM = ["-ac", "1", "-f", "f32le", "-"]
X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]


def ffmpeg(*arguments):
    """Run ffmpeg; its stdout as bytes. Fails with what it said."""
    done = subprocess.run(
        [FFMPEG, "-v", "error", "-y", "-nostdin", *map(str, arguments)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def make_video(path, size="64x48", *, rate="25", frames=10, extra=(), sound=None, source="testsrc2"):
    """A short clip of a moving test picture, with a tone for `sound` seconds where given."""
    tone = ["-f", "lavfi", "-i", f"sine=frequency=440:duration={sound}"] if sound else []
    picture = f"{source}=size={size}:rate={rate}"
    codec = [] if "-c:v" in extra or "-c" in extra else X264
    ffmpeg("-f", "lavfi", "-i", picture, *tone, "-frames:v", frames, *codec, *extra, f"file:{path}")
    return path


def make_flashes(path, extra=(), seconds=3, rate="25", filters="null"):
    """A dark clip that flashes white, and beeps, for 80 ms at every full second from 1 on."""
    flash = f"color=black:s=64x48:r={rate}:d={seconds},drawbox=c=white:t=fill:enable='gte(t,.99)*lt(mod(t+.01,1),.08)'"
    beep = f"aevalsrc=0.8*sin(2*PI*1000*t)*gte(t\\,1)*lt(mod(t\\,1)\\,0.08):s=48000:d={seconds}"
    ffmpeg("-f", "lavfi", "-i", f"{flash},{filters}", "-f", "lavfi", "-i", beep, *X264, *extra, f"file:{path}")
    return path


def header(path):
    """What ffmpeg prints about a file."""
    done = subprocess.run([FFMPEG, "-hide_banner", "-i", f"file:{path}"], capture_output=True, check=False)
    return done.stderr.decode()


def packets(path, stream="0:v:0"):
    """Seconds a tick (Fraction), and the times in ticks of a stream's packets, in order of showing."""
    text = ffmpeg("-copyts", "-i", f"file:{path}", "-map", stream, "-c", "copy", "-f", "framecrc", "-").decode()
    shown = [
        line for line in text.splitlines() if not line.startswith("#") and "F=0x4" not in line and "F=0x5" not in line
    ]
    rows = [line.split(",") for line in shown]
    return Fraction(re.search(r"#tb 0: (\S+)", text)[1]), sorted(int(row[2]) for row in rows)


def rate_of(path):
    """Exact constant frame rate of a video; fails where its pictures are not evenly spaced."""
    tick, times = packets(path)
    steps = set(np.diff(times).tolist())
    assert len(steps) == 1, f"not constant: {steps}"
    return 1 / (steps.pop() * tick)


def decode(path, size, pixels="rgb24"):
    """All frames, as ffmpeg decodes them: uint8 [N, H, W, 3]."""
    filters = f"scale=flags=bicubic+full_chroma_int+accurate_rnd,format={pixels}"
    raw = ffmpeg(
        "-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", filters, "-f", "rawvideo", "-"
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


def flash_times(path, size=(64, 48)):
    """Seconds, on the file's own clock, at which the picture turns white."""
    tick, times = packets(path)
    bright = decode(path, size).mean(axis=(1, 2, 3)) > 128
    assert len(bright) == len(times)
    return [float(times[i] * tick) for i in range(1, len(bright)) if bright[i] and not bright[i - 1]]


def beep_times(path):
    """Seconds, on the file's own clock, at which the beeps begin."""
    resample = "aresample=48000:async=1:first_pts=0"
    raw = ffmpeg("-copyts", "-i", f"file:{path}", "-map", "0:a:0", "-af", resample, *PCM)
    loud = np.convolve(np.abs(np.frombuffer(raw, np.float32)), np.ones(96) / 96, "same") > 0.2
    return (np.flatnonzero(loud[1:] & ~loud[:-1]) / 48000).tolist()


def sound_length(path):
    """Seconds from the file's zero to the end of its sound; 0 where it has none."""
    if "Audio:" not in header(path):
        return 0.0
    raw = ffmpeg("-copyts", "-i", f"file:{path}", "-map", "0:a:0", "-af", "aresample=8000:async=1:first_pts=0", *PCM)
    return len(raw) / 4 / 8000
