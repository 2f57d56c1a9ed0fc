"""Object_Detection.py as its users run it."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_images import CLIP
from media import X264, decode, ffmpeg, packets
from tiny import DOG_BOX, DOG_SCORE, make_checkpoint

import Object_Detection
from inference.drawing import class_color
from utils.errors import InputError
from utils.images import read_image, write_image
from weights.catalogue import resolve
from weights.checkpoint import read_file

SCRIPT = Path(__file__).parents[1] / "Object_Detection.py"
posix = pytest.mark.skipif(os.name != "posix", reason="Windows has other signals, pipes and file names")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four frames of a cat, 320x180."""
    path = tmp_path_factory.mktemp("media") / "in.mp4"
    ffmpeg("-i", CLIP, "-frames:v", 4, "-vf", "scale=320:180", *X264, path)
    return path


@pytest.fixture
def work(tmp_path, clip, monkeypatch):
    """The folder to work in, with in.mp4 and the checkpoint tiny.pth."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, tmp_path)
    make_checkpoint(tmp_path / "tiny.pth", threshold=0.8)
    return tmp_path


@pytest.fixture
def run(work, monkeypatch, capsys):
    """Run the script in this process, with the tiny network: (exit code, stdout, stderr)."""

    def run(*arguments):
        given = ["--device", "cpu", "--trained_model", "tiny.pth", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given])
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def start(*arguments, stdout=subprocess.PIPE):
    """Start the script as a process of its own, with the embedded network."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def labels_in(path):
    """The labels of each line of a JSON file."""
    return [[one["label"] for one in line["detections"]] for line in lines_of(Path(path).read_text())]


def test_the_default_run_detects_in_the_dog_video(work):
    (work / "in.mp4").rename("Funny_dog.mp4")
    process = start()
    out, err = process.communicate()
    assert (process.returncode, err, names()) == (0, "", ["Funny_dog.mp4", "output.mp4", "tiny.pth"])
    assert out.startswith(f"network: {resolve().name}, ")
    for words in ("; mAP 0.", "; threshold 0.6", "4 frames in ", "objects: cat 4\n", "output: output.mp4\n"):
        assert words in out
    before, after = decode("Funny_dog.mp4", (320, 180)), decode("output.mp4", (320, 180))
    assert len(before) == len(after) == 4
    assert (np.abs(after.astype(int) - class_color(7)).max(axis=-1) < 60).mean(axis=(1, 2)).min() > 0.01  # the label
    assert (np.abs(after.astype(int) - before).max(axis=-1) < 40).mean() > 0.8  # the rest of the image


def test_json_on_stdout_is_alone_there(work):
    process = start("in.mp4", "--json", "-", "--threshold", "0.3", "--classes", "cat")
    out, err = process.communicate()
    lines = lines_of(out)
    assert process.returncode == 0
    assert [(line["frame"], line["time"]) for line in lines] == [(n, n / 25) for n in range(4)]
    assert [one["label"] for line in lines for one in line["detections"]] == ["cat"] * 4
    assert "objects: cat 4" in err


@posix
@pytest.mark.parametrize("json_lines", [[], ["--json", "-"]])
@pytest.mark.parametrize("kind", ["closed at once, as by head", "full"])
def test_an_output_that_takes_nothing_does_not_end_the_run(work, kind, json_lines):
    if kind == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, stdout = os.pipe()
        os.close(reading)
    process = start("in.mp4", *json_lines, stdout=stdout)
    os.close(stdout)
    _, err = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert len(decode("output.mp4", (320, 180))) == 4


@posix
def test_head_ends_the_lines_and_not_the_video(work):
    process = start("in.mp4", "--json", "-")
    assert json.loads(process.stdout.readline())["frame"] == 0
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == 0
    assert len(decode("output.mp4", (320, 180))) == 4


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_video_that_plays(work, number):
    process = start(CLIP, "--json", "-", "--output", "a.mp4")
    first = [process.stdout.readline() for _ in range(3)]
    process.send_signal(number)
    out, err = process.communicate()
    lines = lines_of("".join(first) + out)
    assert process.returncode == 128 + number
    assert f"interrupted after {len(lines)} of 200 frames\n" in err
    assert "Traceback" not in err
    assert 3 <= len(lines) == len(decode("a.mp4", (640, 360))) < 200
    assert names() == ["a.mp4", "in.mp4", "tiny.pth"]


def test_threshold_and_classes(run):
    """Without --threshold the checkpoint's own holds, 0.8."""
    flags = ["in.mp4", "--json", "a.jsonl"]
    code, out, err = run(*flags)
    assert (code, err) == (0, "")
    assert re.match(r"network: tiny\.pth, .*; mAP 0\.123 on nothing; threshold 0\.8\n4 frames in ", out)
    assert "objects: dog 4\n" in out
    assert out.endswith("output: output.mp4, a.jsonl\n")
    first = lines_of(Path("a.jsonl").read_text())[0]["detections"][0]
    assert (first["label"], first["score"]) == ("dog", pytest.approx(DOG_SCORE, abs=0.01))
    np.testing.assert_allclose(first["box"], np.multiply(DOG_BOX, [320, 180] * 2), atol=2)
    for more, expected in (
        (["--threshold", 0.5, "--batch_size", 3], ["dog", "person"]),
        (["--threshold", 0.5, "--classes", "PERSON", "cat"], ["person"]),
        (["--classes", "cat"], []),
    ):
        assert run(*flags, *more)[0] == 0
        assert labels_in("a.jsonl") == [expected] * 4


def test_an_image(run):
    write_image("In.PNG", np.full((48, 64, 3), 90, np.uint8))
    assert run("In.PNG", "--json", "a.jsonl")[0] == 0
    assert names() == ["In.PNG", "In_detections.PNG", "a.jsonl", "in.mp4", "tiny.pth"]
    assert (read_image("In_detections.PNG") != 90).any()
    assert labels_in("a.jsonl") == [["dog"]]
    assert run("In.PNG", "--output", "other.jpg")[0] == 0
    assert read_image("other.jpg").shape == (48, 64, 3)


def test_a_folder_of_images(run):
    Path("a").mkdir()
    for index, name in enumerate(("0.jpg", "1.PNG", "2.bmp")):
        write_image(Path("a", name), np.full((30, 40 + index, 3), 90, np.uint8))
    Path("a/3.jpg").write_text("no image")
    Path("a/notes.txt").write_text("no image")
    code, out, err = run("a", "--batch_size", 2, "--json", "a.jsonl")
    assert code == 0
    assert [line.partition(": not")[0] for line in err.splitlines()] == ["note: skipped, not images: notes.txt",
                                                                         "note: left out: a/3.jpg"]  # fmt: skip
    assert "3 images in " in out
    assert names("a") == ["0.jpg", "0_detections.jpg", "1.PNG", "1_detections.PNG", "2.bmp", "2_detections.bmp",
                          "3.jpg", "notes.txt"]  # fmt: skip
    assert [line["file"] for line in lines_of(Path("a.jsonl").read_text())] == ["a/0.jpg", "a/1.PNG", "a/2.bmp"]
    assert run("a", "--output", "b")[0] == 0  # results of the first run are not taken for images
    assert names("b") == ["0.jpg", "1.PNG", "2.bmp"]


@posix
def test_names_are_escaped_on_the_terminal_and_kept_on_the_disk(run):
    name = os.fsdecode(b"\xff\x1b[2J.png")
    write_image(name, np.full((30, 40, 3), 90, np.uint8))
    Path("bad\x1b[2J.png").write_bytes(b"nothing")
    code, out, err = run(".", "--output", "out\x1b[2J", "--json", "a.jsonl")
    assert code == 0
    assert "output: out\\x1b[2J" in out
    assert "left out: bad\\x1b[2J.png" in err
    assert lines_of(Path("a.jsonl").read_text())[0]["file"] == name
    assert names("out\x1b[2J") == [name]


def test_the_notes_of_a_video(run):
    ffmpeg("-i", CLIP, "-vf", "crop=65:49", "-c:v", "ffv1", "-pix_fmt", "yuv444p", "-frames:v", 40, "whole.mkv")
    Path("-v.mkv").write_bytes(Path("whole.mkv").read_bytes()[: Path("whole.mkv").stat().st_size // 2])
    code, out, err = run("--output", "ö.mkv", "--", "-v.mkv")
    assert code == 0
    assert 5 < len(packets("ö.mkv")[1]) < 35
    assert [bool(re.search(r"^note: .*(66x50|frames are missing)", line)) for line in err.splitlines()] == [True] * 2


def test_without_input_the_dog_or_else_the_bundled_clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Object_Detection.find_input(None) in (SCRIPT.with_name("Funny_dog.mp4"), CLIP)
    monkeypatch.setattr(Object_Detection, "HERE", tmp_path / "project")
    with pytest.raises(InputError, match="no INPUT"):
        Object_Detection.find_input(None)


WRONG = {
    "missing": ("no.mp4", "no.mp4: no such file"),
    "empty": ("empty.mp4", "the file is empty"),
    "text": ("text.mp4", "text.mp4: not a video|text.mp4: can't be read"),
    "damaged image": ("bad.png", "bad.png: not a readable image"),
    "empty folder": ("folder", "folder: no image"),
    "camera": ("99", "camera 99"),
    "stream": ("rtsp://127.0.0.1:9/none", "rtsp://127.0.0.1:9/none"),
    "no folder": ("in.mp4 --output no/where.mp4", "no/where.mp4: can't be written"),
    "a folder": ("in.mp4 --output folder", "folder: a video is written as"),
    "suffix": ("in.mp4 --output out.gif", "out.gif: a video is written as .mp4"),
    "suffix of an image": ("good.png --output out.mp4", "out.mp4: unsupported suffix"),
    "a file for a folder": (". --output tiny.pth", "tiny.pth: can't be made a folder"),
    "the images' own folder": (". --output .", "this folder holds the images"),
    "input": ("in.mp4 --output in.mp4", "in.mp4: this is the input"),
    "input by a link": ("in.mp4 --output link.mp4", "link.mp4: this is the input"),
    "JSON is the input": ("in.mp4 --json in.mp4", "--json in.mp4: this is the input"),
    "JSON is the output": ("in.mp4 --json output.mp4", "--json output.mp4: this is the output"),
    "JSON nowhere": ("in.mp4 --json no/where.jsonl", "no/where.jsonl: can't be written"),
    "class": ("in.mp4 --classes dog unicorn", "unicorn: unknown; the network knows aeroplane.*tvmonitor"),
    "threshold": ("in.mp4 --threshold 1.5", "--threshold"),
    "batch size": ("in.mp4 --batch_size 0", "--batch_size"),
    "device": ("in.mp4 --device abacus", "--device abacus"),
    "flag": ("in.mp4 --no_such_flag", "--no_such_flag"),
    "weights": ("in.mp4 --trained_model no.pth", "no.pth: no such file"),
    "no weights": ("in.mp4 --trained_model text.mp4", "text.mp4: "),
    "weights that aren't finite": ("in.mp4 --trained_model nan.pth", "nan.pth: .*loc.0.weight is not finite"),
    "weights for a folder": (". --trained_model nan.pth --output new", "nan.pth: "),
    "no display": ("in.mp4 --show", "--show: there is no display"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_end_in_one_line_and_leave_nothing(work, run, monkeypatch, case):
    arguments, words = WRONG[case]
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    Path("link.mp4").symlink_to("in.mp4")
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("no video\n" * 50)
    Path("bad.png").write_text("no image")
    Path("folder").mkdir()
    if case != "empty folder":
        write_image("good.png", np.full((30, 40, 3), 90, np.uint8))
    contents = read_file("tiny.pth")
    contents["state_dict"]["loc.0.weight"][0] = float("nan")
    torch.save(contents, "nan.pth")
    before = {path: path.is_file() and path.read_bytes() for path in work.rglob("*")}
    code, out, err = run(*arguments.split())
    lines = [line for line in err.splitlines() if not line.startswith("note: skipped")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert re.search(f"^error: .*{words}", lines[0])
    assert before == {path: path.is_file() and path.read_bytes() for path in work.rglob("*")}


def test_a_mistake_and_help_answer_at_once():
    """In a process of its own, and without importing what is heavy."""
    code = f"import sys, runpy; sys.argv = ['o', 'no.mp4']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    code += "\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: no.mp4: no such file or folder; check the name\n")
    assert not {"torch", "cv2", "numpy", "data"} & set(done.stdout.split())
