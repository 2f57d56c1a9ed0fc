"""Videos in and out: what goes in comes out, at its size, rate, time, colours, and with its sound."""

from fractions import Fraction

import numpy as np
import pytest
from inference.decoding import AHEAD, frames_ahead
from inference.planar import PlanarFrame
from media import (
    X264,
    beep_times,
    decode,
    ffmpeg,
    flash_times,
    header,
    make_flashes,
    make_video,
    packets,
    rate_of,
    sound_length,
)

from inference.video import VideoReader, VideoWriter
from utils.errors import InputError

BOTH_WAYS = pytest.mark.parametrize("planar", [False, True], ids=["RGB", "planar"])


def copy_video(source, target, stop_after=None, planar=True):
    """Read a video and write what was read; the reader and the writer, closed."""
    with VideoReader(source, planar=planar) as reader, VideoWriter(target, reader.size, reader.rate, reader) as writer:
        for shown, frame in reader.timed():
            writer.write(frame, shown)
            if reader.decoded == stop_after:
                raise KeyboardInterrupt
    return reader, writer


def left_behind(folder, *expected):
    """Names in a folder besides those expected."""
    return sorted({path.name for path in folder.iterdir()} - set(expected))


def test_frames_are_those_that_ffmpeg_decodes(tmp_path):
    path = make_video(tmp_path / "in.mp4", "96x64", frames=12)
    with VideoReader(path) as reader:
        frames = list(reader)
    assert reader.size == (96, 64)
    assert reader.expected == reader.decoded == 12
    assert reader.missing == 0
    assert all(frame.flags.writeable and frame.dtype == np.uint8 for frame in frames)
    np.testing.assert_array_equal(np.stack(frames), decode(path, (96, 64)))


@pytest.mark.parametrize("size", [(96, 64), (65, 49)])
def test_planar_frames_are_those_that_ffmpeg_decodes(tmp_path, size):
    """To the bit: nothing is converted."""
    extra = ["-c:v", "ffv1", "-pix_fmt", "yuv420p"]
    path = make_video(tmp_path / "in.mkv", f"{size[0]}x{size[1]}", frames=4, extra=extra, source="testsrc")
    raw = ffmpeg("-i", path, "-f", "rawvideo", "-")
    with VideoReader(path, planar=True) as reader:
        assert reader.size == size
        assert b"".join(frame.data.tobytes() for frame in reader) == raw


@pytest.mark.parametrize(
    ("pixels", "tags", "matrix"),
    [
        ("yuv420p", "range=tv:colorspace=bt709", "bt709"),
        ("yuv420p", "range=pc:colorspace=smpte170m", "bt601"),
        ("yuv422p10", "range=tv:colorspace=bt2020nc", "bt2020"),
        ("yuv444p", "range=tv", "bt601"),
        ("bgr0", "range=pc", "bt709"),
    ],
)
def test_planar_frames_have_the_colours_of_rgb_ones(tmp_path, pixels, tags, matrix):
    """On flat patches, whatever the file holds."""
    path = tmp_path / "in.mkv"
    patches = "geq=lum='60+20*floor(X/16)':cb='104+12*floor(Y/16)':cr='150-10*mod(floor(X/16)+floor(Y/16),4)'"
    extent = "pc" if "pc" in tags else "tv"
    filters = f"format=yuv444p,{patches},scale=in_range=tv:out_range={extent},format={pixels},setparams={tags}"
    ffmpeg("-f", "lavfi", "-i", "nullsrc=s=96x64:r=25", "-vf", filters, "-frames:v", 2, "-c:v", "ffv1", path)
    with VideoReader(path) as plain, VideoReader(path, planar=True) as planar:
        for one, other in zip(plain, planar, strict=True):
            assert other.matrix == matrix
            difference = np.abs(other.rgb() - one.astype(int))[8::16, 8::16]
            assert difference.max() <= 2
            assert np.ptp(one[8::16, 8::16], axis=(0, 1)).min() > 60  # there are colours to confuse


@pytest.mark.parametrize(
    ("rate", "suffix"),
    [
        ("30000/1001", "mp4"),
        ("30000/1001", "mkv"),
        ("24000/1001", "ts"),
        ("25/2", "mp4"),
        ("60", "avi"),
        ("25", "h264"),
    ],
)
def test_rate_and_number_of_frames_stay(tmp_path, rate, suffix):
    path = make_video(tmp_path / f"in.{suffix}", rate=rate, frames=41)
    reader, writer = copy_video(path, tmp_path / "out.mp4")
    assert reader.rate == Fraction(rate)
    assert reader.constant
    assert rate_of(tmp_path / "out.mp4") == Fraction(rate)
    assert len(packets(tmp_path / "out.mp4")[1]) == reader.decoded == writer.frames == 41
    assert not writer.notes


@BOTH_WAYS
@pytest.mark.parametrize(
    ("size", "even"), [((193, 145), (194, 146)), ((192, 145), (192, 146)), ((193, 144), (194, 144))]
)
def test_an_odd_side_grows_by_one_pixel_and_no_more(tmp_path, size, even, planar):
    codec = ["-c:v", "ffv1", "-pix_fmt", "yuv444p"]
    path = make_video(tmp_path / "in.mkv", "x".join(map(str, size)), extra=codec, frames=3, source="testsrc")
    reader, writer = copy_video(path, tmp_path / "out.mp4", planar=planar)
    assert reader.size == size
    assert len(writer.notes) == 1
    assert f"{even[0]}x{even[1]}" in writer.notes[0]
    assert f", {even[0]}x{even[1]}" in header(tmp_path / "out.mp4")
    luma = decode(tmp_path / "out.mp4", even)[:, : size[1], : size[0]].mean(axis=-1)
    assert np.abs(luma - decode(path, size).mean(axis=-1)).mean() < 6


@pytest.mark.parametrize("size", ["70x50", "322x182"])
def test_an_even_size_stays(tmp_path, size):
    _, writer = copy_video(make_video(tmp_path / "in.mp4", size, frames=2), tmp_path / "out.mp4")
    assert f", {size}" in header(tmp_path / "out.mp4")
    assert not writer.notes


@BOTH_WAYS
@pytest.mark.parametrize("angle", [90, 180, 270])
def test_a_rotated_video_is_upright(tmp_path, angle, planar):
    stored = make_video(tmp_path / "stored.mp4", "96x64", frames=3)
    path = tmp_path / "in.mp4"
    ffmpeg("-display_rotation", angle, "-i", stored, "-c", "copy", path)
    reader, _ = copy_video(path, tmp_path / "out.mp4", planar=planar)
    size = (96, 64) if angle == 180 else (64, 96)
    assert reader.size == size
    turned = np.rot90(decode(stored, (96, 64)), angle // 90, axes=(1, 2))
    out = decode(tmp_path / "out.mp4", size)
    assert np.abs(out.astype(int) - turned).mean() < 6
    assert "rotation" not in header(tmp_path / "out.mp4")


@pytest.mark.parametrize(("turn", "shape"), [(0, "2:1"), (90, "1:2")])
def test_pixels_keep_their_shape(tmp_path, turn, shape):
    stored = make_video(tmp_path / "stored.mp4", frames=2, extra=[*X264, "-vf", "setsar=2"])
    ffmpeg("-display_rotation", turn, "-i", stored, "-c", "copy", tmp_path / "in.mp4")
    copy_video(tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert f"SAR {shape}" in header(tmp_path / "out.mp4")


@BOTH_WAYS
@pytest.mark.parametrize("name", ["bt709", "smpte170m", "bt2020nc", None])
def test_colours_do_not_shift(tmp_path, name, planar):
    """The luma and chroma of flat patches come out as they went in, and are labelled alike."""
    tags = f"setparams=range=tv:colorspace={name}:color_primaries=bt709:color_trc=bt709" if name else "null"
    patches = (
        "nullsrc=s=96x64:r=25,format=yuv420p,geq=lum='60+16*floor(X/12)':cb='116+4*floor(X/6)':cr='140-4*floor(X/6)'"
    )
    path = tmp_path / "in.mkv"
    ffmpeg("-f", "lavfi", "-i", f"{patches},{tags}", "-frames:v", 3, "-c:v", "ffv1", path)
    copy_video(path, tmp_path / "out.mp4", planar=planar)

    def planes(video):
        raw = ffmpeg("-i", video, "-frames:v", 1, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-")
        return np.split(np.frombuffer(raw, np.uint8).astype(int), [96 * 64, 96 * 64 * 5 // 4])

    for before, after, where in zip(planes(path), planes(tmp_path / "out.mp4"), (12, 6, 6), strict=True):
        middle = (np.arange(len(before)) % where) == where // 2
        assert np.abs((after - before)[middle]).max() <= 3
        assert abs((after - before)[middle].mean()) < 0.7
    said = header(tmp_path / "out.mp4")
    assert (f"{name}" in said) if name else ("yuv420p(progressive)" in said)


def test_the_output_plays_in_a_browser(tmp_path):
    copy_video(make_video(tmp_path / "in.mp4", sound=1, frames=25), tmp_path / "out.mp4")
    assert "Video: h264" in header(tmp_path / "out.mp4")
    assert "yuv420p" in header(tmp_path / "out.mp4")
    assert "Audio: aac" in header(tmp_path / "out.mp4")
    data = (tmp_path / "out.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


FLASHES = {
    "constant.mp4": {},
    "times in milliseconds.mkv": {},
    "clock starts late.ts": {},
    "late first picture.avi": {"extra": ["-c:v", "mpeg4", "-c:a", "mp3"]},
    "vorbis.webm": {"extra": ["-c:v", "libvpx", "-c:a", "libopus"]},
    "pcm.mov": {"extra": ["-c:a", "pcm_s16le"]},
    "ac3.mkv": {"extra": ["-c:a", "ac3"]},
    "gaps.mp4": {"filters": "select='lt(t,1.2)+not(mod(n,2))'", "extra": ["-fps_mode", "passthrough"]},
    "jitter.mkv": {
        "filters": "setpts='PTS+(0.018/TB)*random(0)',settb=1/90000",
        "extra": ["-fps_mode", "passthrough", "-enc_time_base", "1:90000"],
    },
}


@pytest.mark.parametrize("name", FLASHES)
def test_sound_stays_with_the_picture(tmp_path, name):
    path = make_flashes(tmp_path / name, **FLASHES[name])
    out = tmp_path / "out.mp4"
    reader, writer = copy_video(path, out)
    flashes, beeps = flash_times(out), beep_times(out)
    assert len(flashes) == len(beeps) == 2
    np.testing.assert_allclose(flashes, beeps, atol=0.04)
    assert rate_of(out) == reader.rate == 25
    assert writer.frames == 75
    assert not writer.notes


@pytest.mark.parametrize(("stream", "shift"), [("v", 0.5), ("a", 0.5)])
def test_a_late_stream_stays_late(tmp_path, stream, shift):
    base = make_flashes(tmp_path / "base.mp4")
    late = ["-map", "1:v", "-map", "0:a"] if stream == "v" else ["-map", "0:v", "-map", "1:a"]
    ffmpeg("-i", base, "-itsoffset", shift, "-i", base, *late, "-c", "copy", tmp_path / "in.mp4")
    out = tmp_path / "out.mp4"
    copy_video(tmp_path / "in.mp4", out)
    expected = shift if stream == "v" else -shift
    np.testing.assert_allclose(np.subtract(flash_times(out), beep_times(out)), expected, atol=0.04)


def test_sound_longer_than_the_picture_is_kept_and_so_is_a_second_track(tmp_path):
    tones = ["-f", "lavfi", "-i", "sine=d=3", "-f", "lavfi", "-i", "sine=d=2"]
    picture = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1"]
    ffmpeg(
        *picture, *tones, "-map", 0, "-map", 1, "-map", 2, *X264, "-c:a:0", "aac", "-c:a:1", "flac", tmp_path / "in.mkv"
    )
    copy_video(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert sound_length(tmp_path / "out.mp4") == pytest.approx(3, abs=0.05)
    assert header(tmp_path / "out.mp4").count("Audio:") == 2
    assert "Audio: flac" in header(tmp_path / "out.mp4")


def test_a_variable_rate_loses_nothing(tmp_path):
    """Every picture of the source is in the output, some repeated, and the last is shown as long as it was."""
    path = make_video(
        tmp_path / "in.mkv",
        frames=30,
        extra=[
            "-vf",
            "geq=lum='20+7*N':cb=128:cr=128,setpts='(N*0.07+0.2*gt(N,10)+0.03*mod(N,3))/TB'",
            "-fps_mode",
            "passthrough",
            "-c:v",
            "ffv1",
        ]
        + ["-enc_time_base", "1:1000"],
    )
    reader, writer = copy_video(path, tmp_path / "out.mp4")
    assert reader.decoded == 30
    assert not reader.constant
    before, after = decode(path, (64, 48)).astype(int), decode(tmp_path / "out.mp4", (64, 48)).astype(int)
    assert len(after) == writer.frames
    nearest = [int(np.abs(before - frame).mean(axis=(1, 2, 3)).argmin()) for frame in after]
    assert sorted(set(nearest)) == list(range(30))
    assert nearest == sorted(nearest)
    assert rate_of(tmp_path / "out.mp4") == reader.rate


def test_a_single_frame(tmp_path):
    reader, _ = copy_video(make_video(tmp_path / "in.mp4", frames=1), tmp_path / "out.mp4")
    assert reader.expected == reader.decoded == len(decode(tmp_path / "out.mp4", (64, 48))) == 1


@pytest.mark.parametrize(
    "name", ["-leading dash.mp4", "Straße im Grünen.mp4", "100%d.mp4", "a:b'c\"d.mp4", "日本 🎬.mp4"]
)
def test_any_name(tmp_path, monkeypatch, name):
    make_video(tmp_path / "in.mp4", frames=3, sound=0.2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    copy_video(name, "out" + name)
    assert left_behind(tmp_path) == sorted([name, "out" + name])
    assert len(decode(tmp_path / ("out" + name), (64, 48))) == 3


@pytest.fixture
def cut_off(tmp_path):
    """A video of 100 frames with its index in front and its last two thirds gone."""
    whole = make_video(
        tmp_path / "whole.mp4", "160x120", frames=100, sound=6, extra=["-g", "10", "-movflags", "+faststart"]
    )
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    return path


def test_a_broken_off_video_gives_what_decodes(tmp_path, cut_off):
    reader, writer = copy_video(cut_off, tmp_path / "out.mp4")
    assert 10 < reader.decoded < 60
    assert reader.decoded == len(decode(tmp_path / "out.mp4", (160, 120))) == writer.frames
    assert reader.missing == 100 - reader.decoded
    assert sound_length(tmp_path / "out.mp4") <= reader.decoded / 25 + 0.05


def test_a_broken_off_matroska_video(tmp_path):
    whole = make_video(tmp_path / "whole.mkv", "160x120", frames=100)
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    reader, _ = copy_video(tmp_path / "cut.mkv", tmp_path / "out.mp4")
    assert reader.decoded > 10
    assert reader.decoded + reader.missing == 100


def test_damage_in_the_middle_keeps_time(tmp_path):
    """The frames after the damage stay at their time, so that the sound still fits."""
    path = make_flashes(tmp_path / "in.mp4", extra=["-g", "5"])
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    data[start + length // 4 : start + length // 3] = bytes(length // 3 - length // 4)
    path.write_bytes(data)
    reader, writer = copy_video(path, tmp_path / "out.mp4")
    assert reader.decoded + reader.missing == 75
    assert flash_times(tmp_path / "out.mp4")[-1] == pytest.approx(2, abs=0.04)


def test_ctrl_c_leaves_a_video_that_plays(tmp_path):
    path = make_video(tmp_path / "in.mp4", frames=100, sound=4)
    with pytest.raises(KeyboardInterrupt):
        copy_video(path, tmp_path / "out.mp4", stop_after=30)
    assert len(decode(tmp_path / "out.mp4", (64, 48))) == 30
    assert sound_length(tmp_path / "out.mp4") == pytest.approx(30 / 25, abs=0.05)
    assert left_behind(tmp_path) == ["in.mp4", "out.mp4"]


def test_an_error_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path):
    (tmp_path / "out.mp4").write_text("old")
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "out.mp4", (64, 48), 25) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
        raise ZeroDivisionError
    assert left_behind(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "old"


def test_a_reader_may_be_left_early(tmp_path):
    with VideoReader(make_video(tmp_path / "in.mp4", "640x480", frames=200)) as reader:
        next(iter(reader))
    assert not reader.complete
    assert reader.missing == 0
    assert not reader._thread.is_alive()
    assert reader._process.poll() is not None


def test_an_encoder_that_dies_is_reported(tmp_path):
    frame = np.zeros((480, 640, 3), np.uint8)
    with (
        pytest.raises(InputError, match="can't be written"),
        VideoWriter(tmp_path / "out.mp4", (640, 480), 25) as writer,
    ):
        writer._process.kill()
        for _ in range(100):
            writer.write(frame)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "frame", [np.zeros((48, 63, 3), np.uint8), np.zeros((48, 64, 3)), np.zeros((48, 64), np.uint8)]
)
def test_a_wrong_frame_is_refused(tmp_path, frame):
    with pytest.raises(ValueError, match="not uint8"), VideoWriter(tmp_path / "out.mp4", (64, 48), 25) as writer:
        writer.write(frame)


@pytest.mark.parametrize("planar", [False, True])
def test_a_frame_of_the_other_kind_is_refused(tmp_path, planar):
    frames = PlanarFrame((64, 48), "bt601"), np.zeros((48, 64, 3), np.uint8)
    with (
        VideoReader(make_video(tmp_path / "in.mp4"), planar=planar) as reader,
        pytest.raises(ValueError, match="as announced"),
        VideoWriter(tmp_path / "out.mp4", (64, 48), 25, reader) as writer,
    ):
        writer.write(frames[planar])


@pytest.mark.parametrize(("width", "height"), [(64, 48), (1920, 1080), (3840, 2160), (7680, 4320)])
@pytest.mark.parametrize("planar", [False, True])
def test_waiting_frames_are_bounded_in_bytes(width, height, planar):
    size = PlanarFrame((width, height), "bt601").nbytes if planar else width * height * 3
    assert 2 <= frames_ahead(size) <= 16
    assert frames_ahead(size) * size <= max(AHEAD, 2 * size)


def bad_file(folder, kind):
    """A file that is no video, by kind; its path."""
    path = folder / {"text": "text.mp4", "art": "story.txt", "sound": "sound.mp3", "missing": "no.mp4"}.get(
        kind, "bad.mp4"
    )
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind in ("text", "art"):
        path.write_text("It was a dark and stormy night.\n" * 100)
    elif kind == "noise":
        path.write_bytes(np.random.RandomState(0).bytes(50_000))
    elif kind == "sound":
        cover = [
            "-f",
            "lavfi",
            "-i",
            "testsrc2=s=64x48:d=1",
            "-frames:v",
            1,
            "-c:v",
            "mjpeg",
            "-disposition:v",
            "attached_pic",
        ]
        ffmpeg("-f", "lavfi", "-i", "sine=d=1", *cover, "-map", 0, "-map", 1, "-id3v2_version", 3, path)
    elif kind == "no index":
        data = make_video(folder / "whole.mp4", frames=50).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "no picture":
        data = bytearray(make_video(path, frames=5, extra=["-movflags", "+faststart"]).read_bytes())
        data[data.find(b"mdat") + 4 :] = bytes(len(data) - data.find(b"mdat") - 4)
        path.write_bytes(data)
    return path


KINDS = ["missing", "folder", "empty", "text", "art", "noise", "sound", "no index", "no picture"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_video_is_named(tmp_path, kind):
    path = bad_file(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        VideoReader(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["nowhere/out.mp4", "folder.mp4", "out.xyz", "out", "/dev/null", "/proc/out.mp4"])
def test_an_unwritable_target_is_named(tmp_path, where):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=where.split("/")[-1]):
        VideoWriter(tmp_path / where, (64, 48), 25)
    assert left_behind(tmp_path) == ["folder.mp4"]


@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
@pytest.mark.parametrize("size", ["9000x4000", "9000x4800"])
def test_pictures_larger_than_8k_are_refused(tmp_path, codec, size):
    extra = ("-c:v", codec, *(("-preset", "ultrafast") if codec == "libx264" else ()))
    path = make_video(tmp_path / "a.avi", size, frames=1, source="color", extra=extra)
    with pytest.raises(InputError, match=r"a\.avi: its pictures are 90\d\dx.*8192x4320"):
        VideoReader(path)


def test_pictures_of_8192x4320_are_read(tmp_path):
    path = make_video(tmp_path / "a.mp4", "8192x4320", frames=1, source="color", extra=("-preset", "ultrafast"))
    with VideoReader(path, planar=True) as reader:
        assert [frame.size for frame in reader] == [(8192, 4320)]


def test_a_name_that_reads_like_a_refusal(tmp_path):
    path = make_video(tmp_path / "Picture size 9x9 exceeds specified max pixel count.mp4")
    with VideoReader(path) as reader:
        assert len(list(reader)) == 10
