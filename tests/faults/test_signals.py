"""Detection and evaluation struck by a signal at random moments: whole files or none (training: see test_killed.py).

Each signal strikes each script twice, or 20 times with `--long`.
"""

import json
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import cv2
import pytest
from faulty_runs import Running, run_script, start_server
from media import decode, make_video
from synthetic import make_voc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
FRAMES = 100


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("media") / "in.mp4", "160x120", frames=FRAMES, sound=4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    objects = {f"p{n}": [("dog", (5, 5, 60, 60), 0)] for n in range(40)}
    return make_voc(tmp_path_factory.mktemp("pictures") / "mine", objects)


@pytest.fixture(scope="module")
def seconds(tmp_path_factory, video, pictures, checkpoint):
    """How long each script takes when it is left alone."""
    start_server()
    taken = {}
    for script, flags in flags_of(video, pictures, checkpoint).items():
        ended = run_script(script, flags, tmp_path_factory.mktemp("whole"))
        assert ended.code == 0, ended.err
        taken[script] = ended.seconds
    return taken


def flags_of(video, pictures, checkpoint):
    detection = f"{video} --json found.jsonl --trained_model {checkpoint} --device cpu"
    evaluation = f"--dataset {pictures} --save_folder report --trained_model {checkpoint} --device cpu"
    return {"Object_Detection.py": detection, "eval.py": evaluation}


def strike(script, flags, folder, number, moment):
    """Start a script, send it a signal after so many seconds, and wait for its end: Ended."""
    running = Running(script, flags, folder)
    try:
        running.wait_until_started()
        time.sleep(moment)
        with suppress(ProcessLookupError):  # it has ended
            running.signal(number)
        return running.ended()
    finally:
        running.clear()


def helpers_left(folder):
    """Command lines of processes that still work on files of a folder (Linux only)."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes())
    return [line for line in lines if str(folder).encode() in line and b"ffmpeg" in line]


def how_detection_ended(ended, folder, number):
    """In words; fails where a file is half-written, or a process is left."""
    output, lines = folder / "output.mp4", folder / "found.jsonl"
    frames = len(decode(output, (160, 120))) if output.exists() else 0
    listed = len([json.loads(line) for line in lines.read_text().splitlines()]) if lines.exists() else 0
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    deadline = time.monotonic() + 60
    while helpers_left(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert helpers_left(folder) == []
    if ended.code == 0:
        assert (frames, listed, hidden) == (FRAMES, FRAMES, [])
        return "ended before, whole"
    if ended.code == 128 + number:
        assert "interrupted after" in ended.err
        assert 0 < frames == listed <= FRAMES
        assert hidden == []
        return "a video that plays"
    assert ended.code == -number, ended.err
    assert frames in (0, FRAMES)
    assert all(name.startswith(".writing-") for name in hidden)
    if number != signal.SIGKILL:  # before it listened to signals: before it wrote
        assert list(folder.iterdir()) == []
    return "a video that plays" if frames else "no video"


def how_evaluation_ended(ended, folder, number):
    report = folder / "report"
    names = sorted(path.name for path in report.iterdir()) if report.exists() else []
    hidden = [name for name in names if name.startswith(".")]
    if "results.json" in names:
        assert json.loads((report / "results.json").read_text())["dataset"]["pictures"] == 40
        assert {"pr_curves.png", "mistakes.html"} <= set(names)  # it comes last
    if "pr_curves.png" in names:
        assert cv2.imread(str(report / "pr_curves.png")) is not None
    if "mistakes.html" in names:
        assert (report / "mistakes.html").read_text().rstrip().endswith("</html>")
    for name in names:
        if name.startswith("det_val_dog"):
            assert len((report / name).read_text().splitlines()) == 40
    if ended.code == 0:
        assert "results.json" in names
        assert hidden == []
        return "ended before, whole"
    assert ended.code in (128 + number, -number), ended.err
    if number != signal.SIGKILL:
        assert hidden == []
        if ended.code == 128 + number:
            assert ended.error_lines == [f"interrupted by {signal.Signals(number).name}"]
    return "a whole report" if "results.json" in names else "no report"


JUDGES = {"Object_Detection.py": how_detection_ended, "eval.py": how_evaluation_ended}


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("script", JUDGES)
def test_a_signal_at_a_random_moment(tmp_path, video, pictures, checkpoint, seconds, times, tried, script, number):
    flags, moments = flags_of(video, pictures, checkpoint)[script], random.Random(f"{script} {number}")
    for turn in range(times):  # spread over the whole run
        folder = tmp_path / f"turn{turn}"
        folder.mkdir()
        moment = (turn + moments.random()) / times * seconds[script]
        ended = strike(script, flags, folder, number, moment)
        tried(f"{number.name} in {script}", JUDGES[script](ended, folder, number))


@pytest.mark.parametrize("number", SIGNALS[:2], ids=lambda number: number.name)
def test_a_signal_between_the_frames(tmp_path, video, pictures, checkpoint, seconds, tried, number):
    """Once the encoder is at work: the frames until then are in a video that plays, with its sound."""
    running = Running("Object_Detection.py", flags_of(video, pictures, checkpoint)["Object_Detection.py"], tmp_path)
    try:
        deadline = time.monotonic() + 300
        while not any(path.stat().st_size for path in tmp_path.glob(".writing-*.mp4")):
            assert time.monotonic() < deadline
            assert running.process.is_alive()
            time.sleep(0.005)
        running.signal(number)
        ended = running.ended()
    finally:
        running.clear()
    ending = how_detection_ended(ended, tmp_path, number)
    assert ending in ("a video that plays", "ended before, whole")
    tried(f"{number.name} in Object_Detection.py", ending)
