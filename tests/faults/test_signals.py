"""Detection and evaluation that a signal strikes leave whole files or none (training: test_killed_training.py)."""

import json
import random
import time
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
from media import decode, make_video, sound_length
from processes import signal_within
from synthetic import make_voc

from inference import Detector

pytestmark = pytest.mark.slow

DETECTION, EVALUATION = "Object_Detection.py", "eval.py"
FRAMES, IMAGES = 100, 40


@pytest.fixture(scope="module")
def run(tmp_path_factory, start, checkpoint):
    """(name of the script, folder, prepare=None) -> Script at its start."""
    data = tmp_path_factory.mktemp("data")
    make_video(data / "in.mp4", "160x120", frames=FRAMES, sound=4)
    make_voc(data / "images", {f"p{n}": [("dog", (5, 5, 60, 60), 0)] for n in range(IMAGES)})
    flags = {
        DETECTION: f"{data / 'in.mp4'} --json found.jsonl",
        EVALUATION: f"--dataset {data / 'images'} --save_folder .",
    }

    def run(name, folder, prepare=None):
        return start(name, f"{flags[name]} --trained_model {checkpoint} --device cpu", folder, prepare=prepare)

    return run


def check(ended, name, number):
    """Check what a script left, and return how many frames or images are in its results."""
    files = {path.name for path in ended.folder.iterdir()}
    unfinished = {file for file in files if file.startswith(".writing-")}
    assert ended.code in (0, -number, 128 + number), ended.err
    assert ended.code != 128 + number or len(ended.errors) == 1 and "interrupted" in ended.errors[0]
    assert number == SIGKILL or not unfinished
    found = (check_detection if name == DETECTION else check_evaluation)(ended.folder, files - unfinished)
    assert found in (0, FRAMES, IMAGES) or ended.code == 128 + number  # part of a video, after a signal it could handle
    assert found or ended.code
    return found


def check_detection(folder, files):
    frames = len(decode(folder / "output.mp4", (160, 120))) if "output.mp4" in files else 0
    if frames:
        assert sound_length(folder / "output.mp4") == pytest.approx(frames / 25, abs=0.1)
    if "found.jsonl" in files:
        assert [json.loads(line)["frame"] for line in (folder / "found.jsonl").open()] == list(range(frames))
    assert files <= {"output.mp4", "found.jsonl"}
    return frames


def check_evaluation(folder, files):
    """Each file is that of the whole run; results.json, which contains times, comes last."""
    whole = folder.with_name("whole")
    for name in files - {"results.json"}:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    if "results.json" not in files:
        return 0
    assert files == {path.name for path in whole.iterdir()}
    return json.loads((folder / "results.json").read_text())["dataset"]["images"]


@pytest.mark.parametrize("name", [DETECTION, EVALUATION])
def test_at_a_random_moment(tmp_path, run, times, name):
    whole = run(name, tmp_path / "whole").wait()
    assert check(whole, name, 0) == (FRAMES if name == DETECTION else IMAGES)
    for number in (SIGINT, SIGTERM, SIGKILL):
        moments = random.Random(f"{name} {number}")
        for turn in range(times):  # spread over the whole run
            struck = run(name, tmp_path / f"{number.name}{turn}")
            time.sleep((turn + moments.random()) / times * whole.seconds)
            struck.signal(number)
            check(struck.wait(), name, number)


@pytest.mark.parametrize("number", [SIGINT, SIGTERM], ids=lambda number: number.name)
def test_between_the_frames(tmp_path, run, number):
    """The frames so far are in a video that plays, with its sound. An evaluation leaves nothing."""
    ended = run(DETECTION, tmp_path / "detection", (signal_within, (Detector, "outputs", 30, number))).wait()
    assert ended.code == 128 + number, ended.err
    assert 20 <= check(ended, DETECTION, number) < FRAMES
    assert "interrupted after" in ended.err
    ended = run(EVALUATION, tmp_path / "evaluation", (signal_within, (Detector, "outputs", 3, number))).wait()
    assert ended.code == 128 + number, ended.err
    assert ended.err == f"interrupted by {number.name}\n"
    assert list(ended.folder.iterdir()) == []
