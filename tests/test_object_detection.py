"""Object_Detection.py as its users run it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lively import lively_checkpoint
from media import decode, header, make_flashes, make_video, packets, rate_of
from tiny import DOG_BOX, DOG_SCORE, make_checkpoint

import Object_Detection
import weights
from inference import Detections
from utils.errors import InputError
from utils.images import read_image, write_image

SCRIPT = Path(__file__).parents[1] / "Object_Detection.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pth")


@pytest.fixture
def run(tmp_path, monkeypatch, checkpoint):
    """Run the script's main in tmp_path, with the tiny network unless another is named."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        arguments = [str(argument) for argument in arguments]
        if "--trained_model" not in arguments:
            arguments = ["--trained_model", str(checkpoint), *arguments]
        Object_Detection.main(Object_Detection.get_args_parser().parse_args(["--device", "cpu", *arguments]))

    return run


def start(folder, *arguments, **changes):
    """Start the script as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True, env=environment)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def picture(path, size=(64, 48)):
    write_image(path, np.full((size[1], size[0], 3), 90, np.uint8))
    return path


@pytest.mark.parametrize(
    ("path", "device", "dtype", "expected"),
    [
        (weights.EMBEDDED, "cpu", torch.float32, ["ssd300_mAP_77.43_v2.pth", "ssd300_w025_voc.pth"]),
        (weights.EMBEDDED, "cpu", torch.bfloat16, ["ssd300_mAP_77.43_v2.pth"]),
        (weights.EMBEDDED, "cuda", torch.float32, ["ssd300_mAP_77.43_v2.pth"]),
        (weights.LIGHT, "cpu", torch.float32, ["ssd300_mAP_77.43_v2.pth"]),
        (weights.EMBEDDED.with_name("ssd300_mAP_77.43_v2.pth"), "cpu", torch.float32, []),
    ],
)
def test_which_other_networks_are_named(path, device, dtype, expected):
    detector = SimpleNamespace(info=SimpleNamespace(path=path), device=torch.device(device), dtype=dtype)
    hints = Object_Detection.other_networks(detector)
    assert [hint.partition("--trained_model weights/")[2] for hint in hints] == expected


def test_a_video(tmp_path, run, capsys):
    make_video(tmp_path / "in.mp4", "160x120", rate="30000/1001", frames=20, sound=0.6)
    run("in.mp4", "--json", "found.jsonl", "--batch_size", 3)
    assert names(tmp_path) == ["found.jsonl", "in.mp4", "output.mp4"]
    assert rate_of(tmp_path / "output.mp4") * 1001 == 30000
    assert "Audio: aac" in header(tmp_path / "output.mp4")
    before, after = decode(tmp_path / "in.mp4", (160, 120)), decode(tmp_path / "output.mp4", (160, 120))
    assert len(after) == 20
    changed = np.abs(after.astype(int) - before).mean(axis=(0, 3)) > 40
    left, top = round(DOG_BOX[0] * 160), round(DOG_BOX[1] * 120)
    assert changed[30:90, left - 2 : left + 3].any(axis=1).mean() > 0.8  # the left side of the dog's box
    assert changed[60:90, left + 12 : 140].mean() < 0.2  # not what is inside it
    assert top >= 2

    lines = lines_of("found.jsonl")
    assert [line["frame"] for line in lines] == list(range(20))
    np.testing.assert_allclose([line["time"] for line in lines], np.arange(20) * 1001 / 30000, atol=1e-6)
    dog = lines[7]["detections"][0]
    assert dog["label"] == "dog"
    assert dog["score"] == pytest.approx(DOG_SCORE, abs=1e-3)
    np.testing.assert_allclose(dog["box"], np.multiply(DOG_BOX, [160, 120, 160, 120]), atol=0.1)

    said = capsys.readouterr()
    network = said.out.splitlines()[0]
    assert "tiny.pth" in network
    assert "mAP 0.123" in network
    assert "--trained_model weights/ssd300_mAP_77.43_v2.pth" in network
    assert "20 frames" in said.out
    assert "dog 20, person 20" in said.out
    assert all(stage in said.out for stage in ("decode", "network", "draw", "encode"))
    assert str(tmp_path / "output.mp4") in said.out
    assert "20/20" in said.err


def test_threads_change_nothing_but_the_pace(tmp_path, run, capsys):
    """The same lines and the same video, to the bit, whether one thread looks at the frames or three do."""
    weights = lively_checkpoint(tmp_path / "lively.pth")
    make_video(tmp_path / "in.mp4", "320x240", frames=24)
    given, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            run("in.mp4", "--json", "found.jsonl", "--trained_model", weights, "--threshold", 0.05)
            results.append((Path("found.jsonl").read_bytes(), Path("output.mp4").read_bytes()))
            said = capsys.readouterr().out
            assert "they overlap" in said
            assert ("network and draw on 3 threads" in said) == (threads == 3)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(given)
    assert results[0] == results[1]
    assert len({str(line["detections"]) for line in lines_of("found.jsonl")}) == 24  # no frame is like another


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_failure_between_the_frames_ends_the_run(tmp_path, run, monkeypatch, batch_size):
    calls = []

    def detect(detector, frames):
        calls.append(frames)
        if len(calls) == 3:
            raise InputError("the network is out of order")
        time.sleep(0.01)
        return [Detections(np.empty((0, 4)), np.empty(0), np.empty(0, int), [])] * len(frames)

    monkeypatch.setattr("inference.pipeline.detect", detect)
    make_video(tmp_path / "in.mp4", frames=40)
    with pytest.raises(InputError, match="out of order"):
        run("in.mp4", "--batch_size", batch_size, "--json", "found.jsonl")
    assert names(tmp_path) == ["in.mp4"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("work", "decode", "encode"))]


@pytest.mark.parametrize(
    ("classes", "expected"), [(["dog"], {"dog"}), (["PERSON", "cat"], {"person"}), (["cat"], set())]
)
def test_only_some_classes(tmp_path, run, classes, expected):
    make_video(tmp_path / "in.mp4", frames=2)
    run("in.mp4", "--json", "found.jsonl", "--classes", *classes)
    assert {one["label"] for line in lines_of("found.jsonl") for one in line["detections"]} == expected


def test_the_threshold(tmp_path, run):
    make_video(tmp_path / "in.mp4", frames=2)
    run("in.mp4", "--json", "found.jsonl", "--threshold", 0.8)
    assert [[one["label"] for one in line["detections"]] for line in lines_of("found.jsonl")] == [["dog"]] * 2


def test_without_input_the_dog_or_else_the_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Object_Detection, "HERE", tmp_path / "project")
    with pytest.raises(InputError, match="no INPUT"):
        Object_Detection.find_input(None)
    (tmp_path / "project" / "data").mkdir(parents=True)
    places = [tmp_path / "project/data/sample.mp4", tmp_path / "project/Funny_dog.mp4", Path("Funny_dog.mp4")]
    for place in places:
        place.touch()
        assert Object_Detection.find_input(None) == place


@pytest.mark.parametrize("name", ["Spaß mit Hund.mp4", "-v.mp4"])
def test_names(tmp_path, run, name):
    make_video(tmp_path / "in.mp4", frames=2).rename(tmp_path / name)
    run("--output", "aus gabe ü.mp4", "--", name)
    assert len(packets(tmp_path / "aus gabe ü.mp4")[1]) == 2


def test_a_variable_frame_rate(tmp_path, run):
    """A JSON line a frame of the source, at its time; the video's rate is constant."""
    slow = {"filters": "select='lt(t,1.2)+not(mod(n,2))'", "extra": ["-fps_mode", "passthrough"]}
    make_flashes(tmp_path / "in.mp4", seconds=2, **slow)
    tick, times = packets(tmp_path / "in.mp4")
    run("in.mp4", "--json", "found.jsonl")
    lines = lines_of("found.jsonl")
    np.testing.assert_allclose([line["time"] for line in lines], [float(time * tick) for time in times], atol=1e-5)
    assert len(lines) == 40
    assert len(packets(tmp_path / "output.mp4")[1]) == 49


def test_an_odd_size_is_said(tmp_path, run, capsys):
    make_video(tmp_path / "in.mkv", "65x49", frames=2, extra=["-c:v", "ffv1", "-pix_fmt", "yuv444p"], source="testsrc")
    run("in.mkv")
    assert [line for line in capsys.readouterr().err.splitlines() if "66x50" in line and line.startswith("note:")]


def test_a_broken_off_video(tmp_path, run, capsys):
    whole = make_video(tmp_path / "whole.mp4", frames=60, extra=["-g", "5", "-movflags", "+faststart"])
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    run("cut.mp4")
    count = len(packets(tmp_path / "output.mp4")[1])
    assert 5 < count < 55
    note = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(note) == 1
    assert f"{60 - count} of 60 frames are missing" in note[0]


def test_a_picture(tmp_path, run, capsys):
    picture(tmp_path / "In.PNG")
    run("In.PNG", "--json", "found.jsonl")
    assert names(tmp_path) == ["In.PNG", "In_detections.PNG", "found.jsonl"]
    assert (read_image("In_detections.PNG") != 90).any()
    (line,) = lines_of("found.jsonl")
    assert line["file"] == "In.PNG"
    assert [one["label"] for one in line["detections"]] == ["dog", "person"]
    assert "1 picture " in capsys.readouterr().out
    run("In.PNG", "--output", "other.jpg")
    assert read_image("other.jpg").shape == (48, 64, 3)


def test_a_folder_of_pictures(tmp_path, run, capsys):
    (tmp_path / "in").mkdir()
    for index, suffix in enumerate(("jpg", "PNG", "bmp")):
        picture(tmp_path / "in" / f"{index}.{suffix}", (40 + index, 30))
    (tmp_path / "in" / "bad.jpg").write_text("no picture")
    run("in", "--batch_size", 2, "--json", "found.jsonl")
    run("in", "--output", "out")  # our own output of the first run is not taken for input
    assert names(tmp_path / "out") == ["0.jpg", "1.PNG", "2.bmp"]
    assert len(names(tmp_path / "in")) == 7
    assert len(lines_of("found.jsonl")) == 3
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert len(notes) == 2
    assert all("bad.jpg" in note for note in notes)


class FakeCamera:
    """Stands in for cv2.VideoCapture: some frames, one each 50 ms, then the end."""

    def __init__(self, _number):
        self.left = 6

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def read(self):
        time.sleep(0.05)
        self.left -= 1
        return self.left >= 0, np.full((48, 64, 3), (0, 0, 200), np.uint8)

    def get(self, _property):
        return 20.0

    def release(self):
        pass


def test_a_camera(tmp_path, run, monkeypatch):
    monkeypatch.setattr("cv2.VideoCapture", FakeCamera)
    monkeypatch.setattr(sys, "platform", "darwin")  # Linux is asked for /dev/video7 first
    run("7", "--json", "found.jsonl")
    lines = lines_of("found.jsonl")
    assert 1 <= len(lines) <= 6
    assert len(packets(tmp_path / "output.mp4")[1]) >= len(lines)
    assert "20 fps" in header(tmp_path / "output.mp4")
    middle = decode(tmp_path / "output.mp4", (64, 48))[0, 24, 32].astype(int)
    np.testing.assert_allclose(middle, [200, 0, 0], atol=12)  # red, as RGB


WRONG = {
    "missing": (["no.mp4"], "no.mp4"),
    "empty": (["empty.mp4"], "empty"),
    "text": (["text.mp4"], "text.mp4"),
    "no picture": (["bad.png"], "bad.png"),
    "no folder": (["in.mp4", "--output", "no/where.mp4"], "no/where.mp4"),
    "a folder": (["in.mp4", "--output", "folder"], "folder"),
    "suffix": (["in.mp4", "--output", "out.gif"], "out.gif"),
    "itself": (["in.mp4", "--output", "in.mp4"], "is the input"),
    "itself by a link": (["in.mp4", "--output", "link.mp4"], "is the input"),
    "json is the input": (["in.mp4", "--json", "in.mp4"], "is the input"),
    "json is the output": (["in.mp4", "--json", "output.mp4"], "already"),
    "json nowhere": (["in.mp4", "--json", "no/where.jsonl"], "no/where.jsonl"),
    "class": (["in.mp4", "--classes", "unicorn"], "aeroplane.*tvmonitor"),
    "threshold": (["in.mp4", "--threshold", "1.5"], "--threshold"),
    "batch size": (["in.mp4", "--batch_size", "0"], "--batch_size"),
    "device": (["in.mp4", "--device", "abacus"], "--device abacus"),
    "weights": (["in.mp4", "--trained_model", "no.pth"], "no.pth"),
    "broken weights": (["in.mp4", "--trained_model", "text.mp4"], "text.mp4"),
    "empty folder": (["folder"], "no picture"),
    "camera": (["99"], "camera 99"),
    "display": (["in.mp4", "--show"], "--show"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_end_in_one_line_and_leave_nothing(tmp_path, run, monkeypatch, case):
    arguments, said = WRONG[case]
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    make_video(tmp_path / "in.mp4", frames=2)
    (tmp_path / "link.mp4").symlink_to("in.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    before = names(tmp_path), (tmp_path / "in.mp4").read_bytes()
    with pytest.raises(InputError, match=said) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    assert before == (names(tmp_path), (tmp_path / "in.mp4").read_bytes())
    assert names(tmp_path / "folder") == []


def test_help_is_quick_and_imports_nothing_heavy():
    """The script may import only the standard library until its work begins."""
    code = "import sys; import Object_Detection as o; o.get_args_parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=True)
    assert not {"torch", "cv2", "numpy", "data"} & set(loaded.stdout.split())


@pytest.mark.slow
def test_the_script_ends_with_code_2_and_one_line(tmp_path, checkpoint):
    (tmp_path / "text.mp4").write_text("no video\n")
    process = start(tmp_path, "text.mp4", "--trained_model", checkpoint)
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert names(tmp_path) == ["text.mp4"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console, pytest included")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_closes_the_video(tmp_path, checkpoint, number):
    make_video(tmp_path / "in.mp4", "320x240", frames=3000, sound=120)
    process = start(tmp_path, "in.mp4", "--json", "found.jsonl", "--trained_model", checkpoint, "--device", "cpu")
    seen = ""
    while "20/3000" not in seen and process.poll() is None:
        seen += os.read(process.stderr.fileno(), 4096).decode()
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert "interrupted after" in err
    assert names(tmp_path) == ["found.jsonl", "in.mp4", "output.mp4"]
    count = len(decode(tmp_path / "output.mp4", (320, 240)))
    assert 20 <= count < 3000
    assert count == len(lines_of(tmp_path / "found.jsonl"))
    assert f"{count} frames" in out
    assert "Audio: aac" in header(tmp_path / "output.mp4")


@pytest.mark.skipif(sys.platform != "linux", reason="names are any bytes on Linux only")
def test_a_name_that_is_no_utf8(tmp_path, run):
    name = os.fsdecode(b"d\xf6g \xff.png")
    picture(tmp_path / name)
    run(".", "--output", "out", "--json", "found.jsonl")
    (line,) = lines_of("found.jsonl")
    assert line["file"].endswith(name)
    assert [found["label"] for found in line["detections"]] == ["dog", "person"]
    assert len(names(tmp_path / "out")) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names are any bytes on Linux only")
def test_names_are_shown_escaped(tmp_path, run, capsys):
    """What is printed can be printed anywhere, and steers no terminal."""
    picture(tmp_path / "good.png")
    (tmp_path / "bad\x1b[2J.png").write_bytes(b"nothing")
    run(".", "--output", os.fsdecode(b"out\xff\x1b[2J"))
    out, err = capsys.readouterr()
    assert "output: out\\udcff\\x1b[2J" in out
    assert "note: left out: bad\\x1b[2J.png" in err
    assert "\x1b[2J" not in out + err
