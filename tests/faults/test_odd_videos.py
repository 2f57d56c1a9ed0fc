"""Videos as they are: what decodes is in the output, at its time, and the closing lines say what is missing and why."""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from media import X264, decode, ffmpeg, header, make_video, packets, rate_of
from quick import answer_at_once

import Object_Detection
from inference import Detector, camera
from inference.video import VideoReader
from utils.errors import InputError

PASS = ["-fps_mode", "passthrough"]


@pytest.fixture
def detect(tmp_path, monkeypatch, capsys, checkpoint):
    """name -> notes, JSON lines: run the script in tmp_path; the video is output.mp4, with nothing drawn in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Detector, "outputs", Detector.outputs)
    answer_at_once()

    def detect(name):
        flags = f"--device cpu --trained_model {checkpoint} --json found.jsonl --classes cat".split()
        Object_Detection.main(Object_Detection.get_args_parser().parse_args([*flags, "--", str(name)]))
        said = capsys.readouterr()
        assert "output.mp4, " in said.out
        lines = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
        assert [line["frame"] for line in lines] == list(range(len(lines)))
        assert f"{len(lines)} frame" in said.out
        return [line for line in said.err.splitlines() if line.startswith("note:")], lines

    return detect


def frames_in(path, size=(64, 48)):
    """The frames of a video as ffmpeg decodes them, int [N, H, W, 3]."""
    return decode(path, size).astype(int)


def join(target, *parts):
    """Write files one after the other into one, as recorders glue them."""
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def plain(path, size="64x48", colour="red", frames=10):
    """A video of one colour, without B-frames."""
    picture = f"color=c={colour}:s={size}:r=25"
    ffmpeg("-f", "lavfi", "-i", picture, "-frames:v", frames, *X264, "-bf", 0, f"file:{path}")
    return path


@pytest.mark.parametrize("suffix", ["h264", "ts"])
def test_the_size_changes(tmp_path, detect, tried, suffix):
    """All pictures come at the first one's size; those after the change are stretched, not torn."""
    parts = plain(tmp_path / f"a.{suffix}"), plain(tmp_path / f"b.{suffix}", "96x80", "blue")
    (note,), lines = detect(join(tmp_path / f"in.{suffix}", *parts))
    assert "from frame 11 on its pictures are 96x80, not 64x48" in note
    frames = frames_in("output.mp4")
    assert len(lines) == len(frames) == 20
    middle = frames[:, 18:30, 26:38].mean(axis=(1, 2))
    assert (middle[:10].argmax(axis=1) == 0).all()
    assert (middle[10:].argmax(axis=1) == 2).all()
    assert np.ptp(frames[10:, 18:30, 26:38], axis=(1, 2)).max() < 30  # of one colour, as it was
    assert rate_of("output.mp4") == 25
    tried("size changes in mid-stream", "all frames, and a note")


def test_the_rotation_changes(tmp_path, detect, tried):
    first = plain(tmp_path / "a.h264")
    turn = ["-c", "copy", "-bsf:v", "h264_metadata=display_orientation=insert:rotate=90"]
    ffmpeg("-i", plain(tmp_path / "b.h264", colour="blue"), *turn, tmp_path / "turned.h264")
    (note,), lines = detect(join(tmp_path / "in.h264", first, tmp_path / "turned.h264"))
    assert "from frame 11 on its pictures are 48x64, not 64x48" in note
    assert len(lines) == len(frames_in("output.mp4")) == 20
    tried("rotation changes in mid-stream", "all frames, and a note")


def test_the_clock_begins_anew(tmp_path, detect, tried):
    """Two recordings glued together, with a sound that goes on: as long as both, at the rate of both."""
    part = make_video(tmp_path / "part.ts", frames=20)
    notes, lines = detect(join(tmp_path / "in.ts", part, part))
    np.testing.assert_allclose([line["time"] for line in lines], np.arange(40) / 25, atol=1e-3)
    assert rate_of("output.mp4") == 25
    assert len(packets("output.mp4")[1]) == 40
    assert notes == []
    tried("clock begins anew", "all frames")


def without_packets(source, target, start, stop, size=188):
    """Copy an MPEG transport stream without some of its packets, given as fractions of the file."""
    data = source.read_bytes()
    count = len(data) // size
    target.write_bytes(data[: int(count * start) * size] + data[int(count * stop) * size :])
    return target


def test_packets_are_lost_in_the_middle(tmp_path, detect, tried):
    """What a receiver lost: the frames after the gap are at their time."""
    source = make_video(tmp_path / "whole.ts", "160x120", frames=50, extra=[*X264, "-g", 5, "-bf", 0])
    notes, lines = detect(without_packets(source, tmp_path / "in.ts", 0.4, 0.6))
    moments = [line["time"] for line in lines]
    assert 25 <= len(lines) < 50
    assert moments[-1] == pytest.approx(49 / 25, abs=0.001)
    assert len(packets("output.mp4")[1]) == 50  # the gap is filled with the frame before
    assert len(notes) == 1
    assert f"{50 - len(lines)} of 50 frames are missing: it is damaged" in notes[0]
    tried("packets lost in the middle", "the frames there are, and how many are lost")


def test_bytes_are_damaged_in_the_middle(tmp_path, detect, tried):
    path = make_video(tmp_path / "in.mp4", "160x120", frames=50, extra=[*X264, "-g", 5, "-bf", 0])
    data = bytearray(path.read_bytes())
    middle = data.find(b"mdat") + int.from_bytes(data[data.find(b"mdat") - 4 :][:4], "big") // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    notes, lines = detect(path)
    assert 30 < len(lines) < 50
    assert lines[-1]["time"] == pytest.approx(49 / 25, abs=0.001)
    assert len(notes) == 1
    assert f"{50 - len(lines)} of 50 frames are missing: it is damaged (" in notes[0]
    tried("bytes damaged in the middle", "the frames there are, and how many are lost")


def test_a_file_that_is_broken_off(tmp_path, detect, tried):
    whole = make_video(tmp_path / "whole.mp4", "160x120", frames=50, extra=[*X264, "-movflags", "+faststart"])
    (tmp_path / "in.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (note,), lines = detect("in.mp4")
    assert f"{50 - len(lines)} of 50 frames are missing: it is broken off" in note
    tried("file broken off", "the frames there are, and how many are lost")


def test_the_decoder_is_killed(tmp_path, detect, monkeypatch, tried):
    """As by a system that has run out of memory: it doesn't pass for the video's end."""
    path = make_video(tmp_path / "in.mp4", "320x240", frames=200)

    class Victim(VideoReader):
        def timed(self):
            for number, item in enumerate(super().timed()):
                if number == 5:
                    self._process.kill()
                yield item

    monkeypatch.setattr("inference.video.VideoReader", Victim)
    (note,), lines = detect(path)
    assert 5 < len(lines) < 200
    assert len(packets("output.mp4")[1]) == len(lines)
    assert f"{200 - len(lines)} of 200 frames are missing: its decoder was ended by signal 9" in note
    tried("decoder killed", "the frames there are, and how many are lost")


def test_why_frames_are_missing_is_known_before_the_reader_is_closed(tmp_path):
    path = make_video(tmp_path / "in.mp4", "320x240", frames=200)
    with VideoReader(path) as reader:
        for number, _ in enumerate(reader):
            if number == 5:
                reader._process.kill()
        (note,) = reader.notes
    assert "its decoder was ended by signal 9" in note


ODD = {
    "one frame": ("in.mp4", {"frames": 1}, 1),
    "zero duration": ("in.mkv", {"extra": ["-vf", "setpts=0", *PASS, "-c:v", "ffv1"], "frames": 4}, 4),
    "no frame rate": ("in.mjpeg", {"extra": ["-c:v", "mjpeg"]}, 10),
    "no time stamps": ("in.h264", {}, 10),
    "pictures that move": ("in.gif", {"extra": ["-c:v", "gif"]}, 10),
    "10 bit": ("in.mkv", {"extra": ["-c:v", "libx264", "-pix_fmt", "yuv420p10le"]}, 10),
    "alpha, in ProRes": ("in.mov", {"extra": ["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"]}, 10),
    "alpha, in VP9": ("in.webm", {"extra": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"]}, 10),
    "interlaced": ("in.ts", {"extra": ["-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-vf", "setfield=tff"]}, 10),
    "grey, 16 bit": ("in.mkv", {"extra": ["-c:v", "ffv1", "-pix_fmt", "gray16le"]}, 10),
    "a pixel wide": ("in.mkv", {"extra": ["-vf", "scale=1:48", "-c:v", "png"]}, 10),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_videos(tmp_path, detect, tried, kind):
    name, settings, expected = ODD[kind]
    make_video(tmp_path / name, **settings)
    notes, lines = detect(name)
    assert len(lines) == len(packets("output.mp4")[1]) == expected
    assert not [note for note in notes if "missing" in note]
    if "pixel" in kind:
        assert ", 2x48" in header("output.mp4")
    else:
        assert np.median(np.abs(frames_in(name)[0] - frames_in("output.mp4")[0])) < 12
    tried(f"odd video: {kind}", "all frames")


def test_a_variable_rate_in_milliseconds(tmp_path, detect, tried):
    """As browsers record: every frame once, at its time, and no thousand frames a second."""
    jitter = "settb=1/1000,setpts='N*33+floor(9*random(0))'"
    extra = ["-vf", jitter, *PASS, "-enc_time_base", "1:1000", "-c:v", "libvpx"]
    make_video(tmp_path / "in.webm", rate="30", frames=30, extra=extra)
    tick, times = packets("in.webm")
    _, lines = detect("in.webm")
    np.testing.assert_allclose(
        [line["time"] for line in lines], [float((time - times[0]) * tick) for time in times], atol=0.002
    )
    assert rate_of("output.mp4") < 31
    tried("variable frame rate", "all frames")


NAMES = ["a b.mp4", "'a' \"b\".mp4", "-i.mp4", "--.mp4", "two\nlines.mp4", "Übergröße ½.mp4", "%d {x} $HOME `id`.mp4"]
NAMES += ["x\nOutput #0\n  Stream #0:0: Video: none, 2x2.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_names(tmp_path, detect, tried, name):
    """Whatever a file is called, it is read, and what is said of it stays one line."""
    whole = make_video(tmp_path / "whole.mp4", frames=20, sound=0.8, extra=[*X264, "-g", 5, "-movflags", "+faststart"])
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    (note,), lines = detect(name)
    assert " ".join(name.split()) in note
    assert len(lines) == len(packets("output.mp4")[1]) > 5
    assert "Audio: aac" in header("output.mp4")
    tried("odd name", "all frames")


def pour(data, pipe):
    """Write data into a named pipe from a thread of its own, and end."""

    def write():
        with suppress(BrokenPipeError):  # whoever reads may have enough
            pipe.write_bytes(data)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("share", [1, 0.6])
def test_a_pipe(tmp_path, detect, tried, share):
    """Whole, or ending early: with the sound, although a pipe can be read only once; the copy is gone afterwards."""
    whole = make_video(tmp_path / "whole.mp4", frames=40, sound=1.6, extra=[*X264, "-g", 5, "-movflags", "+faststart"])
    data = whole.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    thread = pour(data[: int(len(data) * share)], tmp_path / "pipe")
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "temporary").mkdir()
        patch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        notes, lines = detect("pipe")
    thread.join()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert len(lines) == len(packets("output.mp4")[1])
    assert "Audio: aac" in header("output.mp4")
    if share == 1:
        assert (len(lines), notes) == (40, [])
    else:
        assert 5 < len(lines) < 40
        assert len(notes) == 1
        assert f"pipe: {40 - len(lines)} of 40 frames are missing: it is broken off" in notes[0]
    tried("pipe that ends early" if share < 1 else "pipe", "the frames there are, and how many are lost")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_without_a_video(tmp_path, detect, tried):
    os.mkfifo(tmp_path / "pipe")
    for data in (b"", b"no video\n" * 9):
        thread = pour(data, tmp_path / "pipe")
        with pytest.raises(InputError, match="^pipe can't be read as a video"):
            detect("pipe")
        thread.join()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe"]
        tried("pipe without a video", "one line")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("fault", ["no video", "no room", "nowhere"])
def test_a_pipe_s_copy_is_gone_before_anybody_hears_why(tmp_path, monkeypatch, fault):
    """While the error is held, so are the frames that it came through, and the copy's owner with them."""
    import resource

    temporary, pipe = tmp_path / "temporary", tmp_path / "pipe"
    temporary.mkdir()
    os.mkfifo(pipe)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    if fault == "nowhere":
        temporary.rmdir()
    else:
        pour(b"no video\n" * 600, pipe)  # more than there is room for, and less than Python writes at a time
    expected = {"no video": "read as a video", "no room": f"copied to {temporary}: File too large"}
    expected["nowhere"] = f"copied to {temporary}: No such file"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if fault == "no room" else limits[0], limits[1]))
        with pytest.raises(InputError, match=f"pipe can't be {expected[fault]}") as caught:
            VideoReader(pipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fault == "nowhere" or list(temporary.iterdir()) == []
    assert caught.value.__traceback__ is not None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_s_copy_is_gone_once_the_reader_is_closed(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    pour(make_video(tmp_path / "in.mp4", frames=3).read_bytes(), tmp_path / "pipe")
    with VideoReader(tmp_path / "pipe") as reader:
        assert len(list((tmp_path / "temporary").iterdir())) == 1
        assert len(list(reader)) == 3
    assert list((tmp_path / "temporary").iterdir()) == []
    assert reader.complete  # it is still there


class Camera:
    """Stands in for cv2.VideoCapture: five frames, and then what a subclass does."""

    left = 6  # the first one is read to see whether it gives pictures

    def __init__(self, _number):
        pass

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def read(self):
        time.sleep(0.03)
        self.left -= 1
        return (True, np.full((48, 64, 3), (0, 0, 200), np.uint8)) if self.left >= 0 else self.end()

    def end(self):
        return False, None

    def get(self, _property):
        return 20.0

    def release(self):
        pass


class Unplugged(Camera):
    """Gives no more pictures."""


class Failing(Camera):
    """OpenCV throws at its next picture."""

    def end(self):
        import cv2

        raise cv2.error("can't grab")


class Empty(Camera):
    """Says that there is a picture, and gives none."""

    def end(self):
        return True, None


class Silent(Camera):
    """Doesn't answer any more."""

    def end(self):
        time.sleep(3)
        return False, None


class Changed(Camera):
    """Is plugged in again, and gives another size before it ends."""

    def end(self):
        if self.left < -3:
            return False, None
        return True, np.full((96, 128, 3), (200, 0, 0), np.uint8)


@pytest.mark.parametrize("kind", [Unplugged, Failing, Empty, Silent, Changed])
def test_a_camera_goes_away(tmp_path, detect, monkeypatch, tried, kind):
    monkeypatch.setattr("cv2.VideoCapture", kind)
    monkeypatch.setattr(camera, "LONGEST_SILENCE", 0.6)
    monkeypatch.setattr(sys, "platform", "darwin")  # Linux is asked for /dev/video7 first
    (note,), lines = detect("7")
    how = "has been silent for 0.6 s" if kind is Silent else "gave no more pictures"
    assert f"camera 7 {how} after {len(lines)} frames" in note
    frames = frames_in("output.mp4")
    assert len(frames) >= len(lines) >= 1
    if kind is Changed:
        assert frames[-1, 24, 32].argmax() == 2  # blue, as the new pictures are
    tried(f"camera goes away: {kind.__name__.lower()}", "the frames there are, and a note")


def test_a_camera_that_is_still_asked_is_not_let_go(monkeypatch):
    """OpenCV crashes where a camera is released while a thread waits for its picture."""
    answer, asked, released = threading.Event(), threading.Event(), []

    class Stuck(Camera):
        left = 1

        def end(self):
            asked.set()
            answer.wait(60)
            return False, None

        def release(self):
            released.append(answer.is_set())

    monkeypatch.setattr("cv2.VideoCapture", Stuck)
    monkeypatch.setattr(sys, "platform", "darwin")
    reader = camera.CameraReader(7)
    assert asked.wait(60)
    thread, join = reader._thread, reader._thread.join
    monkeypatch.setattr(thread, "join", lambda timeout: join(0.05))
    reader.close()
    assert thread.is_alive()
    assert released == []
    answer.set()
    join(60)
    reader.close()
    assert released == [True]
