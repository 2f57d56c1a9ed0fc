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
from media import X264, decode, ffmpeg
from tiny import DOG_BOX, DOG_SCORE, make_checkpoint

import Object_Detection
from inference.drawing import class_color
from utils.images import read_image, write_image
from weights.catalogue import resolve
from weights.checkpoint import read_file

SCRIPT = Path(__file__).parents[1] / "Object_Detection.py"
GRAY = np.full((30, 40, 3), 90, np.uint8)
posix = pytest.mark.skipif(os.name != "posix", reason="Windows has other signals, pipes and file names")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """in.mp4, four frames of a cat in 320x180, and tiny.pth, which has a threshold of its own."""
    folder = tmp_path_factory.mktemp("files")
    ffmpeg("-i", CLIP, "-frames:v", 4, "-vf", "scale=320:180", *X264, folder / "in.mp4")
    make_checkpoint(folder / "tiny.pth", threshold=0.8)
    return folder


@pytest.fixture
def run(files, tmp_path, monkeypatch, capsys):
    """Run the script in a copy of the files, in this process: (exit code, stdout, stderr)."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        flags = ["--device", "cpu", "--trained_model", "tiny.pth"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags, *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as error:
            return error.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def start(*arguments, stdout=subprocess.PIPE):
    """Start the script as a process of its own, with the embedded network."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def labels_of(text):
    return [[one["label"] for one in line["detections"]] for line in lines_of(text)]


def test_the_default_run_detects_in_the_dog_video(run):
    Path("in.mp4").rename("Funny_dog.mp4")
    process = start()
    out, err = process.communicate()
    assert (process.returncode, err, names()) == (0, "", ["Funny_dog.mp4", "output.mp4", "tiny.pth"])
    assert out.startswith(f"network: {resolve().name}, ")
    assert all(words in out for words in ("; mAP 0.", "4 frames in ", "objects: cat 4\n", "output: output.mp4\n"))
    before, after = decode("Funny_dog.mp4", (320, 180)), decode("output.mp4", (320, 180))
    assert len(before) == len(after) == 4
    assert (np.abs(after.astype(int) - class_color(7)).max(axis=-1) < 60).mean(axis=(1, 2)).min() > 0.01  # a cat's
    assert (np.abs(after.astype(int) - before).max(axis=-1) < 40).mean() > 0.8  # the rest of the image


def test_without_the_dog_video_it_is_the_bundled_clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Object_Detection.find_input(None) in (SCRIPT.with_name("Funny_dog.mp4"), CLIP)


@posix
@pytest.mark.parametrize("flags", [[], ["--json", "-"]])
@pytest.mark.parametrize("kind", ["closed", "full"])
def test_a_stdout_that_takes_nothing_does_not_end_the_run(run, kind, flags):
    reading, stdout = os.pipe() if kind == "closed" else (os.open(os.devnull, 0), os.open("/dev/full", os.O_WRONLY))
    os.close(reading)  # as `| head -1` does after a line
    process = start("in.mp4", *flags, stdout=stdout)
    os.close(stdout)
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode == 0
    assert len(decode("output.mp4", (320, 180))) == 4


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_video_that_plays(run, number):
    process = start(CLIP, "--json", "-")
    first = [process.stdout.readline() for _ in range(3)]
    process.send_signal(number)
    lines, err = lines_of("".join(first) + process.stdout.read()), process.stderr.read()
    assert process.wait() == 128 + number
    assert f"interrupted after {len(lines)} of 200 frames\n" in err
    assert "Traceback" not in err
    assert 3 <= len(lines) == len(decode("output.mp4", (640, 360))) < 200
    assert names() == ["in.mp4", "output.mp4", "tiny.pth"]


def test_threshold_classes_and_json(run):
    """Without --threshold the checkpoint's own holds, 0.8."""
    code, out, err = run("in.mp4", "--json", "a.jsonl")
    assert (code, err) == (0, "")
    assert re.match(r"network: tiny\.pth, .*; mAP 0\.123 on nothing; threshold 0\.8\n4 frames in ", out)
    assert out.endswith("output: output.mp4, a.jsonl\n")
    lines = lines_of(Path("a.jsonl").read_text())
    assert [(line["frame"], line["time"], len(line["detections"])) for line in lines] == [
        (n, n / 25, 1) for n in range(4)
    ]
    dog = lines[0]["detections"][0]
    assert (dog["label"], dog["score"]) == ("dog", pytest.approx(DOG_SCORE, abs=0.01))
    np.testing.assert_allclose(dog["box"], np.multiply(DOG_BOX, [320, 180] * 2), atol=2)
    for flags, expected in (
        ("--threshold 0.5 --batch_size 3", ["dog", "person"]),
        ("--threshold 0.5 --classes PERSON cat", ["person"]),
        ("--classes cat", []),
    ):
        code, out, err = run("in.mp4", "--json", "-", *flags.split())
        assert labels_of(out) == [expected] * 4  # JSON is alone on stdout
        assert "output: output.mp4, -" in err


@posix
def test_an_image_whose_name_steers_a_terminal(run):
    name = os.fsdecode(b"\xff\x1b[2J.PNG")
    write_image(name, GRAY)
    code, out, _ = run(name, "--json", "a.jsonl")
    assert (code, labels_of(Path("a.jsonl").read_text())) == (0, [["dog"]])
    assert f"output: {ascii(name)[1:-5]}_detections.PNG, a.jsonl" in out
    assert (read_image(name.replace(".", "_detections.")) != GRAY).any()
    assert run(name, "--output", "other.jpg")[0] == 0
    assert read_image("other.jpg").shape == GRAY.shape


def test_a_folder_of_images(run):
    for name in ("0.jpg", "1.PNG", "2.bmp"):
        write_image(Path(name), GRAY)
    Path("3\x1b.jpg").write_text("no image")
    code, out, err = run(".", "--batch_size", 2, "--json", "a.jsonl")
    assert (code, "3 images in " in out) == (0, True)
    skipped, left_out = err.splitlines()
    assert skipped == "note: skipped, not images: in.mp4, tiny.pth"
    assert left_out.startswith("note: left out: 3\\x1b.jpg: not a readable image")
    assert {"0_detections.jpg", "1_detections.PNG", "2_detections.bmp"} < set(names())
    assert [line["file"] for line in lines_of(Path("a.jsonl").read_text())] == ["0.jpg", "1.PNG", "2.bmp"]
    assert run(".", "--output", "out")[0] == 0  # results of the first run are not taken for images
    assert names("out") == ["0.jpg", "1.PNG", "2.bmp"]


def test_notes_name_an_odd_size_and_missing_frames(run):
    ffmpeg("-i", CLIP, "-vf", "format=yuv444p,crop=65:49", "-c:v", "ffv1", "-frames:v", 40, "whole.mkv")
    Path("-v.mkv").write_bytes(Path("whole.mkv").read_bytes()[: Path("whole.mkv").stat().st_size // 2])
    code, _, err = run("--output", "ö.mkv", "--", "-v.mkv")
    count = len(decode("ö.mkv", (66, 50)))
    assert (code, 5 < count < 35) == (0, True)
    first, second = err.splitlines()
    assert first.startswith("note: ö.mkv: written as 66x50")
    assert second.startswith(f"note: -v.mkv: {40 - count} of 40 frames are missing")


WRONG = {
    "no.mp4": "no.mp4: no such file",
    "empty.mp4": "the file is empty",
    "bad.png": "bad.png: not a readable image",
    "folder": "folder: no image",
    "99": "camera 99",
    "in.mp4 --output no/where.mp4": "no/where.mp4: can't be written",
    "in.mp4 --output out.gif": "out.gif: a video is written as .mp4",
    "good.png --output out.mp4": "out.mp4: unsupported suffix",
    ". --output tiny.pth": "tiny.pth: this is a file",
    ". --output out.jpg": "out.jpg: name a folder",
    ". --output .": "this folder holds the images",
    "in.mp4 --output in.mp4": "in.mp4: this is the input",
    "in.mp4 --output link.mp4": "link.mp4: this is the input",
    "in.mp4 --json in.mp4": "--json in.mp4: this is the input",
    "in.mp4 --json output.mp4": "--json output.mp4: this is the output",
    "in.mp4 --json no/where.jsonl": "no/where.jsonl: can't be written",
    "in.mp4 --classes dog unicorn": "unicorn: unknown; the network knows aeroplane.*tvmonitor",
    "in.mp4 --threshold 1.5": "--threshold",
    "in.mp4 --batch_size 0": "--batch_size",
    "in.mp4 --device abacus": "--device abacus",
    "in.mp4 --no_such_flag": "--no_such_flag",
    "in.mp4 --trained_model no.pth": "no.pth: no such file",
    "in.mp4 --trained_model text.mp4": "text.mp4: ",
    "in.mp4 --trained_model nan.pth": "nan.pth: loc.0.weight is not finite",
    ". --trained_model nan.pth --output new": "nan.pth: ",
    "in.mp4 --show": "--show: there is no display",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_mistakes_end_in_one_line_and_leave_nothing(tmp_path, run, monkeypatch, arguments):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    Path("link.mp4").symlink_to("in.mp4")
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("no video\n" * 50)
    Path("bad.png").write_text("no image")
    Path("folder").mkdir()
    write_image("good.png", GRAY)
    contents = read_file("tiny.pth")
    contents["state_dict"]["loc.0.weight"][0] = float("nan")
    torch.save(contents, "nan.pth")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    code, out, err = run(*arguments.split())
    lines = [line for line in err.splitlines() if not line.startswith("note: skipped")]
    assert (code, "output:" in out, len(lines)) == (2, False, 1), err
    assert re.search(f"^error: .*{WRONG[arguments]}", lines[0])
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


def test_a_mistake_is_named_at_once():
    """In a process of its own, which imports nothing heavy."""
    code = f"import sys, runpy; sys.argv = ['o', 'no.mp4']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    command = [sys.executable, "-c", f"{code}\nfinally: print(*sys.modules)"]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: no.mp4: no such file or folder; check the name\n")
    assert not {"torch", "cv2", "numpy", "data"} & set(done.stdout.split())
