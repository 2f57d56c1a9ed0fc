"""Object_Detection.py as its users run it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_images import CLIP
from media import X264, decode, ffmpeg, names
from tiny import DOG_BOX, DOG_SCORE, make_checkpoint

import Object_Detection
from data import VOC_CLASSES
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


def start(*arguments, stdout=subprocess.PIPE):
    """Start the script as a process of its own, with the embedded network."""
    return subprocess.Popen([sys.executable, SCRIPT, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_the_default_run_detects_in_the_dog_video(run):
    assert Path(Object_Detection.default_input()) in (SCRIPT.with_name("Funny_dog.mp4"), CLIP)
    Path("in.mp4").rename("Funny_dog.mp4")
    process = start()
    out, err = process.communicate()
    assert (process.returncode, err, names()) == (0, "", ["Funny_dog.mp4", "output.mp4", "tiny.pth"])
    assert out.startswith(f"network: {resolve().name}, ")
    assert all(words in out for words in ("; mAP 0.", "4 frames in ", "objects: cat 4\n", "output: output.mp4\n"))
    before, after = (decode(name, (320, 180)).astype(int) for name in ("Funny_dog.mp4", "output.mp4"))
    assert (np.abs(after - class_color(7)).max(axis=-1) < 60).mean(axis=(1, 2)).min() > 0.01  # a cat's label
    assert (np.abs(after - before).max(axis=-1) < 40).mean() > 0.8  # the rest of the image


@posix
@pytest.mark.parametrize("flags", [[], ["--json", "-"]])
@pytest.mark.parametrize("kind", ["closed", "full"])
def test_a_stdout_that_takes_nothing_does_not_end_the_run(run, kind, flags):
    reading, stdout = os.pipe() if kind == "closed" else (os.open(os.devnull, 0), os.open("/dev/full", os.O_WRONLY))
    os.close(reading)  # as `| head -1` does after a line
    process = start("in.mp4", *flags, stdout=stdout)
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode == 0
    os.close(stdout)
    assert len(decode("output.mp4", (320, 180))) == 4


@posix
def test_a_stderr_that_takes_nothing_costs_no_results(run):
    write_image("good.png", GRAY)
    reading, stderr = os.pipe()
    os.close(reading)
    command = [sys.executable, SCRIPT, "good.png", "no.png", "--json", "a.jsonl"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=stderr, check=False).returncode == 1
    os.close(stderr)
    assert len(lines_of(Path("a.jsonl").read_text())) == 1


def test_threshold_classes_and_json(run):
    """Without --threshold the checkpoint's own holds, 0.8."""
    code, out, err = run("in.mp4", "--json", "a.jsonl")
    pattern = r"network: tiny\.pth, .*; mAP 0\.123 on nothing; threshold 0\.8\n4 frames in (.*\n)*output: .*, a.jsonl\n"
    assert (code, bool(re.fullmatch(pattern, out)), err) == (0, True, "")
    lines = lines_of(Path("a.jsonl").read_text())
    box = pytest.approx(np.multiply(DOG_BOX, [320, 180] * 2), abs=2)
    dog = {"label": "dog", "score": pytest.approx(DOG_SCORE, abs=0.01), "box": box}
    assert lines == [{"file": "in.mp4", "frame": n, "time": n / 25, "detections": [dog]} for n in range(4)]
    for flags, expected in {
        "--threshold 0.5 --batch_size 3": ["dog", "person"],
        "--threshold 0.5 --classes PERSON cat": ["person"],
        "--classes cat": [],
    }.items():
        code, out, err = run("in.mp4", "--json", "-", *flags.split())
        found = [[one["label"] for one in line["detections"]] for line in lines_of(out)]  # JSON is alone on stdout
        assert found == [expected] * 4
        assert "output: output.mp4\n" in err


def test_images_of_any_name(run):
    odd = os.fsdecode("é\x1b[2J".encode("latin-1"))  # not UTF-8, and steers a terminal
    for name in ("0.PNG", "1.bmp", f"{odd}.jpg"):
        write_image(Path(name), GRAY)
    Path("3\x1b.jpg").write_text("no image")
    code, out, err = run(".", "--batch_size", "2", "--json", "a.jsonl", "--csv", "a.csv")
    assert (code, "3 images in " in out, Path("a.csv").read_text().count("dog")) == (1, True, 3)
    assert err.startswith("error: 3\\x1b.jpg: not a readable ")
    assert {"0_detections.PNG", "1_detections.bmp", f"{odd}_detections.jpg"} < set(names())
    assert [line["file"] for line in lines_of(Path("a.jsonl").read_text())] == ["0.PNG", "1.bmp", f"{odd}.jpg"]
    Path("3\x1b.jpg").unlink()
    assert run(".", "--output", odd)[0] == 0  # results of the first run are not taken for images
    assert names(odd) == ["0.PNG", "1.bmp", f"{odd}.jpg"]
    assert f"output: {ascii(odd)[1:-1]}_detections.jpg\n" in run(f"{odd}.jpg")[1]
    assert (read_image(f"{odd}_detections.jpg") != read_image(f"{odd}.jpg")).any()


def test_notes_name_an_odd_size_and_missing_frames(run):
    ffmpeg("-i", CLIP, "-vf", "format=yuv444p,crop=65:49", "-c:v", "ffv1", "-frames:v", 40, "whole.mkv")
    Path("-v.mkv").write_bytes(Path("whole.mkv").read_bytes()[: Path("whole.mkv").stat().st_size // 2])
    code, _, err = run("--output", "ö.mkv", "--", "-v.mkv")
    missing = 40 - len(decode("ö.mkv", (66, 50)))
    assert (code, 5 < missing < 35) == (0, True)
    pattern = f"note: ö.mkv: written as 66x50, .*\nnote: -v.mkv: {missing} of 40 frames are missing; .*\n"
    assert re.fullmatch(pattern, err)


WRONG = {
    "text.mp4": "text.mp4: (not a video|can't be read)",
    "bad.png": "bad.png: not a readable image",
    "folder": "folder: no image",
    "no.mp4 no.jpg": "no.jpg: no such file",
    "99": "camera 99",
    "in.mp4 --output out.gif": "out.gif: a video is written as .mp4",
    "good.png --output out.mp4": "out.mp4: an image is written as .jpg",
    ". --output tiny.pth": "tiny.pth: this is a file",
    ". --output .": "png: this is the input",
    "in.mp4 --output mine.mp4": "mine.mp4: exists, and this program didn't write it",
    "in.mp4 --json good.png --overwrite": "--json good.png: the name of an image",
    "in.mp4 --csv mine_detections.csv": "mine_detections.csv: exists, and",
    "in.mp4 --coco a.json": "--coco: COCO results support only images",
    "good.png --crops folder2": "--crops folder2: this folder holds other files",
    "http://[bad/a.mp4": "invalid address",
    "none*.mp4": "none.*: no file matches",
    "in.mp4 --csv -": "--csv -: only --json writes to stdout",
    "good.png --coco a.json --trained_model helmet.pth": "--coco: COCO has no class helmet",
    "in.mp4 --trained_model state_4.pth": "state_4.pth: the state of a run",
    "in.mp4 --output link.mp4": "link.mp4: this is the input",
    "in.mp4 --output hard.mp4 --overwrite": "hard.mp4: this is the input",
    "in.mp4 --json in.mp4": "--json in.mp4: this is the input",
    "in.mp4 --json output.mp4": "--json output.mp4: already the target",
    "in.mp4 --classes dog unicorn": "unicorn: unknown; the network knows aeroplane.*tvmonitor",
    "in.mp4 --threshold 1.5": "--threshold",
    "in.mp4 --trained_model nan.pth": "nan.pth: loc.0.weight is not finite",
    ". --trained_model nan.pth --output new": "nan.pth: ",
    ". --show --output new --crops new2": "--show: no window can be opened",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_mistakes_end_in_one_line_and_leave_nothing(tmp_path, run, monkeypatch, arguments):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("folder", "folder2"):
        Path(name).mkdir()
    for name in ("text.mp4", "bad.png", "mine.mp4", "mine_detections.csv", "folder2/mine.txt"):
        Path(name).write_text("no video or image\n" * 50)
    Path("link.mp4").symlink_to("in.mp4")
    Path("hard.mp4").hardlink_to("in.mp4")
    write_image("good.png", GRAY)
    contents = read_file("tiny.pth")
    contents["state_dict"]["loc.0.weight"][0] = float("nan")
    torch.save(contents, "nan.pth")
    torch.save({"format": "ssd-run-2", "model": {}}, "state_4.pth")
    make_checkpoint("helmet.pth", class_names=("helmet", *VOC_CLASSES[1:]))
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    code, out, err = run(*arguments.split())
    lines = err.splitlines()
    assert (code, "output:" in out, len(lines)) == (2, False, 1 + ("no.jpg" in arguments)), err
    assert re.search(f"^error: .*{WRONG[arguments]}", lines[-1])
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


def test_a_mistake_is_named_at_once():
    """In a process of its own, which does not import PyTorch."""
    command = [sys.executable, "-X", "importtime", SCRIPT, "no.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, lines) == (2, ["error: no.mp4: no such file or folder; check the name"])
    assert not re.search(r"\| +(torch|data)$", done.stderr, re.M)


def test_a_signal_while_the_network_is_loaded_writes_nothing(run, monkeypatch):
    Path("output.mp4").write_text("old")
    monkeypatch.setattr("inference.Detector", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    code, out, err = run("in.mp4", "--overwrite")
    assert (code, out, err) == (130, "", "interrupted by SIGINT\n")
    assert Path("output.mp4").read_text() == "old"
