"""The bundled clip, and the camera that made it."""

import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from data import make_sample
from data.make_sample import FADE, HEIGHT, OUTPUT, SHOTS, WIDTH, Shot, View, make_frames, render, view_at
from utils.errors import InputError


def test_the_clip_is_what_it_should_be():
    content = OUTPUT.read_bytes()
    assert len(content) <= 1_500_000
    assert content.index(b"moov") < content.index(b"mdat")  # plays before all of it has arrived
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    done = subprocess.run([ffmpeg, "-i", OUTPUT, "-f", "null", "-"], capture_output=True, text=True, check=True)
    assert re.search(r"Video: h264 .*yuv420p.* 640x360.* 25 fps", done.stderr)
    assert int(re.findall(r"frame=\s*(\d+)", done.stderr)[-1]) == clip_length() == 200


def clip_length():
    return sum(shot.frames for shot in SHOTS) - FADE * (len(SHOTS) - 1)


def test_every_picture_has_its_origin_noted():
    text = OUTPUT.with_name("SAMPLE_LICENSE.md").read_text(encoding="utf-8")
    starts = [sum(shot.frames - FADE for shot in SHOTS[:i]) for i in range(len(SHOTS))]
    ends = [start + shot.frames - 1 for start, shot in zip(starts, SHOTS, strict=True)]
    assert f"| {starts[0]}-{ends[0]} | Chelsea" in text
    assert f"| {starts[1]}-{ends[1]} | Eileen Collins" in text
    assert f"| {starts[2]}-{ends[2]} | Commodore Grace" in text
    for name in ("chelsea.png", "astronaut.png", "grace_hopper.jpg"):
        assert name in text


def test_the_camera_stops_where_it_should_and_never_jumps():
    shot = Shot("cat", View(100, 80, 400), View(130, 90, 300), 50)
    views = np.array([[v.x, v.y, v.width] for v in (view_at(shot, i) for i in range(50))])
    np.testing.assert_allclose(views[[0, -1]], [[100, 80, 400], [130, 90, 300]])
    steps = np.diff(views[:, 0])
    assert (steps > 0).all()
    assert steps.max() < 2 * 30 / 49  # smoothstep is 1.5 times as fast as even motion, at most
    assert steps[0] < 0.1 * steps.max()


def test_the_camera_moves_by_fractions_of_a_pixel():
    ramp = np.repeat(np.arange(0, 250, 0.25)[None, :, None], 600, axis=0).repeat(3, axis=2).astype(np.float32)
    at = [float(render(ramp, View(500 + shift, 300, 640))[180, 320, 0]) for shift in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(np.diff(at), [0.0625, 0.0625, 0.125], atol=0.02)  # OpenCV samples at 1/32 pixel


def test_a_view_of_the_whole_frame_is_the_picture_itself():
    picture = np.random.RandomState(0).randint(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    view = View((WIDTH - 1) / 2, (HEIGHT - 1) / 2, WIDTH)
    np.testing.assert_array_equal(render(picture, view), picture)


def test_shots_fade_into_each_other():
    pictures = {"a": np.full((360, 640, 3), 200, np.uint8), "b": np.full((360, 640, 3), 80, np.uint8)}
    still = View(320, 180, 640)
    frames = list(make_frames(pictures, (Shot("a", still, still, 10), Shot("b", still, still, 12))))
    levels = [int(frame[0, 0, 0]) for frame in frames]
    assert len(levels) == 10 + 12 - FADE
    assert levels == [200] * 5 + [180, 160, 140, 120, 100] + [80] * 7


def test_the_clip_shows_what_the_script_makes():
    pytest.importorskip("skimage", reason="only making the clip anew needs scikit-image and matplotlib")
    pytest.importorskip("matplotlib", reason="only making the clip anew needs scikit-image and matplotlib")
    pictures = make_sample.load_pictures()
    reader = imageio_ffmpeg.read_frames(str(OUTPUT))
    next(reader)
    clip = [np.frombuffer(raw, np.uint8).reshape(HEIGHT, WIDTH, 3) for raw in reader]
    first = 0
    for shot in SHOTS:
        made = render(pictures[shot.picture], view_at(shot, 30))
        error = np.square(clip[first + 30].astype(float) - made).mean()
        assert error < 60, f"{shot.picture}: mean square error {error:.0f}"  # 30 dB
        first += shot.frames - FADE


def test_an_output_without_a_folder(tmp_path):
    args = make_sample.get_args_parser().parse_args(["--output", str(tmp_path / "no" / "clip.mp4")])
    with pytest.raises(InputError, match="there is no folder"):
        make_sample.main(args)
