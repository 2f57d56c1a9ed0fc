"""VideoReader and VideoWriter: size, rate, number of frames, time, colors and sound are kept."""

import os
from fractions import Fraction
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from checks import refused
from media import beep_times, decode, ffmpeg, flash_times, info, make_flashes, make_video, names, rate_of, sound_length

from inference.video import VideoReader, VideoWriter
from utils.errors import InputError

PASS = ["-fps_mode", "passthrough"]


def copy_video(source, target):
    """Read a video and write its frames; return the closed reader and writer."""
    with VideoReader(source) as reader, VideoWriter(target, reader.size, reader.rate, reader) as writer:
        for time, frame in reader.timed():
            writer.write(frame, time)
    return reader, writer


class TestFrames:
    def test_are_those_that_ffmpeg_decodes(self, tmp_path):
        path = make_video(tmp_path / "in.mp4", "96x64", frames=12)
        with VideoReader(path) as reader:
            frames = list(reader)
        assert reader.size == (96, 64)
        assert reader.expected == reader.decoded == 12
        assert (reader.complete, reader.notes) == (True, [])
        assert all(frame.flags.writeable and frame.dtype == np.uint8 for frame in frames)
        np.testing.assert_array_equal(np.stack(frames), decode(path, (96, 64)))

    @pytest.mark.parametrize("kind", [
        "30000/1001 mp4", "30000/1001 mkv", "24000/1001 ts", "25/2 mp4", "60 avi", "25 webm", "256 mp4", "1/60 mp4",
        "2 mp4", "25 mkv that starts late",
    ])  # fmt: skip
    def test_keep_their_rate_and_number(self, tmp_path, kind):
        rate, suffix, *late = kind.split(maxsplit=2)
        codec = ["-c:v", "libvpx"] if suffix == "webm" else ["-output_ts_offset", "100"] if late else []
        path = make_video(tmp_path / f"in.{suffix}", rate=rate, frames=41, extra=codec)
        reader, writer = copy_video(path, tmp_path / "out.mp4")
        assert reader.rate == rate_of(tmp_path / "out.mp4") == Fraction(rate)
        assert len(decode(tmp_path / "out.mp4", (64, 48))) == reader.decoded == reader.expected == writer.frames == 41
        assert writer.notes == reader.notes == []

    @pytest.mark.parametrize(("name", "codec", "times", "ticks"), [
        ("two late frames.mp4", ["-bf", 0], "N*3000+1200*eq(N,20)+1800*eq(N,40)", 90_000),
        ("a pause.mp4", [], "N*1500+135000*gte(N,30)", 90_000),
        ("of a browser.webm", ["-c:v", "libvpx"], "N*33+floor(9*random(0))", 1000),
    ])  # fmt: skip
    def test_of_a_variable_rate_get_the_nominal_one_and_keep_the_length(self, tmp_path, name, codec, times, ticks):
        extra = [*codec, "-vf", f"settb=1/{ticks},setpts='{times}'", *PASS, "-enc_time_base", f"1:{ticks}"]
        copy_video(make_video(tmp_path / name, rate="30", frames=90, extra=extra), tmp_path / "out.mp4")
        rate = rate_of(tmp_path / "out.mp4")
        assert 28 <= rate <= 31 if "browser" in name else rate == (60 if "pause" in name else 30)
        assert len(decode(tmp_path / "out.mp4", (64, 48))) / rate == pytest.approx(3, abs=1.5 / 28)

    @pytest.mark.parametrize(("size", "even"), [((193, 145), (194, 146)), ((192, 145), (192, 146))])
    def test_with_an_odd_side_grow_by_one_pixel(self, tmp_path, size, even):
        codec = ["-c:v", "ffv1", "-pix_fmt", "yuv444p"]
        path = make_video(tmp_path / "in.mkv", "x".join(map(str, size)), extra=codec, frames=3, source="testsrc")
        reader, writer = copy_video(path, tmp_path / "out.mp4")
        assert reader.size == size
        assert [f"{even[0]}x{even[1]}" in note for note in writer.notes] == [True]
        luma = decode(tmp_path / "out.mp4", even)[:, : size[1], : size[0]].mean(axis=-1)
        assert np.abs(luma - decode(path, size).mean(axis=-1)).mean() < 6

    @pytest.mark.parametrize("angle", [90, 180, 270])
    def test_of_a_rotated_video_are_upright(self, tmp_path, angle):
        stored = make_video(tmp_path / "stored.mp4", "96x64", frames=3)
        ffmpeg("-display_rotation", angle, "-i", stored, "-c", "copy", tmp_path / "in.mp4")
        reader, _ = copy_video(tmp_path / "in.mp4", tmp_path / "out.mp4")
        size = (96, 64) if angle == 180 else (64, 96)
        assert reader.size == size
        turned = np.rot90(decode(stored, (96, 64)), angle // 90, axes=(1, 2))
        assert np.abs(decode(tmp_path / "out.mp4", size).astype(int) - turned).mean() < 8

    @pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
    def test_keep_their_colors(self, tmp_path, matrix):
        """Flat patches have the same RGB values before and after, and the output is tagged BT.709."""
        lines = "geq=lum='60+16*floor(X/12)':cb='116+4*floor(X/6)':cr='140-4*floor(X/6)'"
        tags = f"setparams=range=tv:colorspace={matrix}:color_primaries=bt709:color_trc=bt709"
        path, out = tmp_path / "in.mkv", tmp_path / "out.mp4"
        source = f"nullsrc=s=96x64:r=25,format=yuv420p,{lines},{tags}"
        ffmpeg("-f", "lavfi", "-i", source, "-frames:v", 3, "-c:v", "ffv1", path)
        copy_video(path, out)
        before, after = (decode(video, (96, 64)).astype(int)[0, 8::16, 6::12] for video in (path, out))
        assert np.abs(after - before).max() <= 6
        assert abs((after - before).mean()) < 1
        assert "bt709" in info(out)

    def test_play_in_a_browser_and_keep_the_shape_of_their_pixels(self, tmp_path):
        path = make_video(tmp_path / "in.mp4", sound=1, frames=25, extra=["-vf", "setsar=2"])
        copy_video(path, tmp_path / "out.mp4")
        for text in ("Video: h264", "yuv420p", "Audio: aac", "SAR 2:1"):
            assert text in info(tmp_path / "out.mp4")
        data = (tmp_path / "out.mp4").read_bytes()
        assert 0 < data.find(b"moov") < data.find(b"mdat")  # the index comes first


class TestSound:
    @pytest.mark.parametrize(("name", "settings"), [
        ("constant.mp4", {}),
        ("clock starts late.ts", {}),
        ("mp3.avi", {"extra": ["-c:v", "mpeg4", "-c:a", "mp3"]}),
        ("opus.webm", {"extra": ["-c:v", "libvpx", "-c:a", "libopus"]}),
        ("pcm.mov", {"extra": ["-c:a", "pcm_s16le"]}),
        ("vorbis.mkv", {"extra": ["-c:a", "libvorbis"]}),
        ("gaps.mp4", {"filters": "select='lt(t,1.2)+not(mod(n,2))'", "extra": PASS}),
    ])  # fmt: skip
    def test_stays_with_the_frames(self, tmp_path, name, settings):
        copy_video(make_flashes(tmp_path / name, **settings), tmp_path / "out.mp4")
        flashes, beeps = flash_times(tmp_path / "out.mp4"), beep_times(tmp_path / "out.mp4")
        assert len(flashes) == len(beeps) == 2
        np.testing.assert_allclose(flashes, beeps, atol=0.041)

    @pytest.mark.parametrize("stream", ["v", "a"])
    def test_and_frames_that_start_late_stay_late(self, tmp_path, stream):
        base, out = make_flashes(tmp_path / "base.mp4"), tmp_path / "out.mp4"
        late = ["-map", "1:v", "-map", "0:a"] if stream == "v" else ["-map", "0:v", "-map", "1:a"]
        ffmpeg("-i", base, "-itsoffset", 0.5, "-i", base, *late, "-c", "copy", tmp_path / "in.mp4")
        copy_video(tmp_path / "in.mp4", out)
        expected = 0.5 if stream == "v" else -0.5
        np.testing.assert_allclose(np.subtract(flash_times(out), beep_times(out)), expected, atol=0.041)

    def test_ends_with_the_frames_of_an_early_stop(self, tmp_path):
        """Also if the rest was decoded ahead."""
        path, out = make_video(tmp_path / "in.mp4", frames=100, sound=4), tmp_path / "out.mp4"
        with VideoReader(path) as reader, VideoWriter(out, reader.size, reader.rate, reader) as writer:
            for frame in list(reader)[:30]:
                writer.write(frame)
        assert reader.complete
        assert sound_length(out) == pytest.approx(1.2, abs=0.05)

    def test_longer_than_the_frames_is_kept_and_so_is_a_second_track(self, tmp_path):
        frames = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1"]
        tones = ["-f", "lavfi", "-i", "sine=d=3", "-f", "lavfi", "-i", "sine=d=2", "-i", tmp_path / "in.srt"]
        tracks = ["-map", 0, "-map", 1, "-map", 2, "-map", 3, "-c:v", "mpeg4", "-c:a:0", "aac", "-c:a:1", "flac"]
        (tmp_path / "in.srt").write_text("1\n00:00:01,000 --> 00:00:05,000\ntext\n")  # longer than both
        ffmpeg(*frames, *tones, *tracks, tmp_path / "in.mkv")
        reader, _ = copy_video(tmp_path / "in.mkv", tmp_path / "out.mp4")
        assert reader.notes == []
        assert sound_length(tmp_path / "out.mp4") == pytest.approx(3, abs=0.05)
        assert info(tmp_path / "out.mp4").count("Audio:") == 2

    def test_a_track_that_ffmpeg_does_not_know_costs_only_itself(self, tmp_path):
        """Phones add one with spatial sound."""
        tones = ["-f", "lavfi", "-i", "sine=d=1", "-map", 0, "-map", 1, "-map", 1, "-c", "copy", "-c:a", "aac"]
        ffmpeg("-i", make_video(tmp_path / "base.mp4", frames=25), *tones, tmp_path / "in.mp4")
        head, _, tail = (tmp_path / "in.mp4").read_bytes().rpartition(b"mp4a")
        (tmp_path / "in.mp4").write_bytes(head + b"apac" + tail.replace(b"esds", b"free", 1))
        _, writer = copy_video(tmp_path / "in.mp4", tmp_path / "out.mp4")
        assert info(tmp_path / "out.mp4").count("Audio:") == 1
        assert ["all sound tracks but the first" in note for note in writer.notes] == [True]


def test_titles_do_not_change_rate_and_length(tmp_path):
    tags = {
        "title": "Video: 4K, 60 fps",
        "comment": "Duration: 01:23:45, start: 7.5",
        "Stream": "x: Video: top first, 60 fps",
    }
    extra = [flag for key, tag in tags.items() for flag in ("-metadata", f"{key}={tag}")]
    reader, _ = copy_video(make_video(tmp_path / "in.mkv", extra=extra), tmp_path / "out.mp4")
    assert (reader.rate, reader.expected, reader.info.origin, reader.info.interlaced) == (25, 10, 0, False)


ODD = {
    "one frame": ("in.mp4", {"frames": 1}, 1),
    "no frame rate": ("in.mjpeg", {"extra": ["-c:v", "mjpeg"]}, 10),
    "no time stamps": ("in.h264", {}, 10),
    "GIF": ("in.gif", {"extra": ["-c:v", "gif"]}, 10),
    "10 bit": ("in.mkv", {"extra": ["-c:v", "libx264", "-pix_fmt", "yuv420p10le"]}, 10),
    "alpha in ProRes": ("in.mov", {"extra": ["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"]}, 10),
    "alpha in VP9": ("in.webm", {"extra": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"]}, 10),
    "interlaced": ("in.ts", {"extra": ["-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-vf", "setfield=tff"]}, 10),
    "gray, 16 bit": ("in.mkv", {"extra": ["-c:v", "ffv1", "-pix_fmt", "gray16le"]}, 10),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_videos_keep_all_frames(tmp_path, kind):
    name, settings, expected = ODD[kind]
    path = make_video(tmp_path / name, **settings)
    reader, _ = copy_video(path, tmp_path / "out.mp4")
    before, after = (decode(video, (64, 48)).astype(int) for video in (path, tmp_path / "out.mp4"))
    assert (reader.decoded, len(after), reader.notes) == (expected, expected, [])
    assert np.median(np.abs(before[0] - after[0])) < 12


@pytest.mark.parametrize("name", ["-i.mp4", "100%d.mp4", "a:b'c\"d.mp4", "日本 🎬 ½.mp4", "Output #0, rawvideo.mp4"])
def test_any_name(tmp_path, monkeypatch, name):
    make_video(tmp_path / "in.mp4", frames=3, sound=0.2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    copy_video(name, "out.mp4")
    copy_video("out.mp4", "out" + name)
    assert names() == sorted([name, "out.mp4", "out" + name])
    assert len(decode(tmp_path / ("out" + name), (64, 48))) == 3


class TestDamagedVideos:
    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    def test_a_truncated_one_gives_what_decodes_and_the_number_of_missing_frames(self, tmp_path, suffix):
        flags = ["-g", "10", "-movflags", "+faststart"] if suffix == "mp4" else ["-g", "10"]
        path = make_video(tmp_path / f"in.{suffix}", "160x120", frames=100, sound=4, extra=flags)
        os.truncate(path, path.stat().st_size // 2)
        reader, writer = copy_video(path, tmp_path / "out.mp4")
        assert 10 < reader.decoded < 90
        assert reader.decoded == len(decode(tmp_path / "out.mp4", (160, 120))) == writer.frames
        (note,) = reader.notes
        assert f"{path}: {100 - reader.decoded} of 100 frames are missing" in note
        assert sound_length(tmp_path / "out.mp4") <= reader.decoded / 25 + 0.05

    def test_frames_after_the_damage_keep_their_time(self, tmp_path):
        path = make_flashes(tmp_path / "in.mp4", extra=["-g", "5"])
        data = bytearray(path.read_bytes())
        start = data.find(b"mdat") + 4
        length = int.from_bytes(data[start - 8 : start - 4], "big")
        data[start + length // 4 : start + length // 3] = bytes(length // 3 - length // 4)
        path.write_bytes(data)
        reader, _ = copy_video(path, tmp_path / "out.mp4")
        assert reader.decoded + reader.missing == pytest.approx(75, abs=1)
        assert flash_times(tmp_path / "out.mp4")[-1] == pytest.approx(2, abs=0.041)

    @pytest.mark.parametrize("suffix", ["h264", "ts"])
    def test_a_change_of_size_within_the_video_keeps_the_first_size(self, tmp_path, suffix):
        path, other = tmp_path / f"in.{suffix}", tmp_path / f"other.{suffix}"
        make_video(path, "64x48", source="color=c=red", extra=["-bf", 0])
        make_video(other, "96x80", source="color=c=blue", extra=["-bf", 0])
        path.write_bytes(path.read_bytes() + other.read_bytes())
        reader, _ = copy_video(path, tmp_path / "out.mp4")
        frames = decode(tmp_path / "out.mp4", (64, 48)).astype(int)[:, 18:30, 26:38].mean(axis=(1, 2))
        assert reader.decoded == len(frames) == 20
        assert frames.argmax(axis=1).tolist() == [0] * 10 + [2] * 10


def without_frames(path):
    data = make_video(path, frames=5, extra=["-movflags", "+faststart"]).read_bytes()
    start = data.find(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))


NO_VIDEOS = {
    "missing.mp4": lambda path: None,
    "folder.mp4": Path.mkdir,
    "empty.mp4": Path.touch,
    "story.txt": lambda path: path.write_text("It was a dark and stormy night.\n" * 100),
    "noise.mp4": lambda path: path.write_bytes(np.random.RandomState(0).bytes(50_000)),
    "cover.mp3": partial(make_video, frames=1, sound=1, extra=["-c:v", "mjpeg", "-disposition:v", "attached_pic"]),
    "no index.mp4": lambda path: os.truncate(make_video(path, frames=50), 3000),  # of 7,293 bytes
    "no frame.mp4": without_frames,
    **({"pipe.mp4": os.mkfifo} if hasattr(os, "mkfifo") else {}),
    "larger than 8K.avi": partial(make_video, size="9000x4000", frames=1, source="color", extra=["-c:v", "mjpeg"]),
}


@pytest.mark.parametrize("name", NO_VIDEOS)
def test_a_file_that_is_not_a_video_is_refused_with_one_line(tmp_path, name):
    path = tmp_path / name
    NO_VIDEOS[name](path)
    assert str(path) in refused("", VideoReader, path)


class TestWriter:
    @pytest.mark.parametrize("name", ["nowhere/out.mp4", "folder.mp4", "out.xyz", "out", "/dev/null", "/proc/out.mp4"])
    def test_names_a_target_that_it_can_not_write(self, tmp_path, name):
        (tmp_path / "folder.mp4").mkdir()
        refused(name.split("/")[-1], VideoWriter, tmp_path / name, (64, 48), 25)
        assert names(tmp_path) == ["folder.mp4"]

    @pytest.mark.parametrize(("frames", "error", "message"), [
        ([np.zeros((48, 64, 3), np.uint8), None], AttributeError, "shape"),
        ([np.zeros((48, 63, 3), np.uint8)], ValueError, "expected uint8"),
        ([np.zeros((48, 64, 3))], ValueError, "expected uint8"),
        ([], InputError, "no frame"),
    ], ids=["an error", "another size", "another type", "no frame"])  # fmt: skip
    def test_leaves_nothing_after_an_error_and_the_earlier_file_as_it_was(self, tmp_path, frames, error, message):
        (tmp_path / "out.mp4").write_text("old")
        with pytest.raises(error, match=message), VideoWriter(tmp_path / "out.mp4", (64, 48), 25) as writer:
            for frame in frames:
                writer.write(frame)
        assert names(tmp_path) == ["out.mp4"]
        assert (tmp_path / "out.mp4").read_text() == "old"

    @pytest.mark.parametrize("error", [OSError("too many processes"), RuntimeError("no ffmpeg")])
    def test_ends_if_ffmpeg_cannot_be_started(self, tmp_path, monkeypatch, error):
        monkeypatch.setattr("subprocess.Popen", Mock(side_effect=error))
        said = pytest.raises(InputError, match="can't be written")
        with said, VideoWriter(tmp_path / "out.mp4", (64, 48), 25) as writer:
            for _ in range(50):
                writer.write(np.zeros((48, 64, 3), np.uint8))
        assert names(tmp_path) == []

    @pytest.mark.parametrize(("times", "kept"), [
        ([0, 0.1, 0.5], [0, 1, 1, 1, 1, 2]), (np.arange(60) / 30, [0, 1, *range(2, 60, 3)]),
    ], ids=["slower than its rate", "faster"])  # fmt: skip
    def test_repeats_and_drops_frames_to_keep_the_time(self, tmp_path, times, kept):
        grays = np.linspace(10, 240, len(times))
        with VideoWriter(tmp_path / "out.mp4", (64, 48), 10) as writer:
            for time, gray in zip(times, grays, strict=True):
                writer.write(np.full((48, 64, 3), gray, np.uint8), time)
        means = decode(tmp_path / "out.mp4", (64, 48)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(means, grays[kept], atol=5)
