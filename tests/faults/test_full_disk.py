"""A full disk at each write: one line, exit code 2, nothing half-written; training resumes from the last state."""

import shutil
import sys

import cv2
import pytest
from media import make_video
from processes import NO_DISK, limit_file_size
from synthetic import make_voc, write_image
from test_train import FINAL, OBJECTS, SMALL, assert_same

from training.state import list_states
from weights.checkpoint import read_file

both = pytest.mark.parametrize("kind", ["size limit", "full disk"])
PAGE = 4096  # a tmpfs counts in pages


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A video whose output takes more than 16 kB."""
    return make_video(tmp_path_factory.mktemp("media") / "in.mp4", "320x240", frames=30)


@pytest.fixture
def full(tmp_path, start):
    """(script, flags, room, kind, words) -> what is left of disk/, which (or each file) holds at most `room` bytes.

    The script must end in one line with the words.
    """

    def full(script, flags, room, kind, words, code=2):
        folder, limited = tmp_path / "run", kind == "size limit"
        if limited:
            (folder / "disk").mkdir(parents=True, exist_ok=True)
        how = {"prepare": (limit_file_size, (room,))} if limited else {"disk": room}
        ended = start(script, flags, folder, **how).wait()
        if NO_DISK in ended.err:
            pytest.skip(NO_DISK)
        if code == 2:
            ended.assert_refused(words)
        assert (ended.code, words in ended.errors[0]) == (code, True)
        return folder / ("disk" if limited else "left")

    return full


def files(folder):
    """Return the names of all files of a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@both
def test_the_video(full, video, checkpoint, kind):
    flags = f"{video} --output disk/out.mp4 --trained_model {checkpoint} --device cpu"
    assert files(full("Object_Detection.py", flags, 4 * PAGE, kind, "out.mp4: can't be written")) == []


@both
@pytest.mark.parametrize(("where", "number"), [("in the middle", 160), ("at the end", 30)])
def test_the_json_lines(tmp_path, full, checkpoint, kind, where, number):
    """Of many small images: Python writes some 8 kB at a time, and the rest at the end."""
    for n in range(number):
        write_image(tmp_path / "run" / "in" / f"{n:03}.jpg", (8, 8))
    flags = f"in --json disk/found.jsonl --output out --trained_model {checkpoint} --device cpu"
    assert files(full("Object_Detection.py", flags, PAGE, kind, "found.jsonl: can't be written")) == []
    written = len(files(tmp_path / "run" / "out"))
    assert written == number if where == "at the end" else 1 < written < number


@both
def test_images(tmp_path, full, checkpoint, kind):
    """Those that fitted are complete, and their results are kept."""
    for n, size in enumerate([(20, 20), (400, 300), (400, 300)]):
        write_image(tmp_path / "run" / "in" / f"{n}.png", size, n)
    flags = f"in --output disk --json found.jsonl --trained_model {checkpoint} --device cpu"
    left = full("Object_Detection.py", flags, 4 * PAGE, kind, "1.png: can't be written", code=1)
    assert files(left) == ["0.png"]
    assert cv2.imread(str(left / "0.png")).shape == (20, 20, 3)
    assert (tmp_path / "run" / "found.jsonl").read_text().count("\n") == 1


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    objects = {f"p{n}": [("dog", (5, 5, 60, 60), 0)] for n in range(40)}
    return make_voc(tmp_path_factory.mktemp("images") / "images", objects)


@pytest.fixture(scope="module")
def report(tmp_path_factory, start, images, checkpoint):
    """(flags, {name: bytes}) of an evaluation with enough room."""
    folder = tmp_path_factory.mktemp("report") / "run"
    flags = f"--dataset {images} --save_folder disk --trained_model {checkpoint} --device cpu"
    assert start("eval.py", flags, folder).wait().code == 0
    return flags, {path.name: path.read_bytes() for path in sorted((folder / "disk").iterdir())}  # as they are written


@pytest.mark.parametrize(("kind", "name"), [
    ("size limit", "det_val_dog.txt"), ("size limit", "mistakes.html"), ("full disk", "det_val_person.txt"),
    ("full disk", "mistakes.html"), ("full disk", "pr_curves.png"), ("full disk", "results.json"),
])  # fmt: skip
def test_a_report(full, report, kind, name):
    """The files before the one that doesn't fit are complete."""
    flags, whole = report
    before = list(whole)[: list(whole).index(name)]
    room = len(whole[name]) - 1 if kind == "size limit" else sum(-len(whole[name]) // PAGE * -PAGE for name in before)
    left = full("eval.py", flags, room, kind, f"{name}: can't be written")
    assert {path.name: path.read_bytes() for path in left.iterdir()} == {name: whole[name] for name in before}


@pytest.mark.parametrize(("kind", "file"), [
    ("size limit", "disk/state_2.pth"), ("size limit", "disk"), ("full disk", "disk/state_4.pth"),
])  # fmt: skip
def test_training(tmp_path, start, full, kind, file):
    """The states before are complete, and the run resumes from them. "disk": log.csv."""
    data, whole, disk = make_voc(tmp_path / "images", OBJECTS, split="train"), tmp_path / "whole", tmp_path / "run/disk"
    settings = f"--dataset {data} {SMALL} --max_iter 6 --print_every 1 --save_every 2 --resume auto"
    assert start("train.py", f"{settings} --save_folder {whole}", whole).wait().code == 0
    room = (whole / "state_6.pth").stat().st_size * (1 if kind == "size limit" else 3) // 2
    if file == "disk":  # a log that is longer than whatever is written before its next row
        disk.mkdir(parents=True)
        shutil.copy(whole / "state_2.pth", disk)
        rows = (whole / "log.csv").read_bytes().splitlines(keepends=True)[:3]
        (disk / "log.csv").write_bytes(b"".join([*rows, *rows[2:] * 300]))
        room = (disk / "log.csv").stat().st_size + 10
    left = full("train.py", f"{settings} --save_folder disk", room, kind, f"{file}: can't be written")
    saved = {path.name for path in list_states(left)}
    assert saved == (set() if "state_2" in file else {"state_2.pth"})
    assert not list(left.glob(".writing-*"))
    again = start("train.py", f"{settings} --save_folder {left}", tmp_path / "again").wait()
    assert again.code == 0, again.err
    assert ("resuming from" in again.out) == bool(saved)
    assert_same(*(read_file(folder / FINAL)["state_dict"] for folder in (left, whole)))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that is read-only even for root")
@pytest.mark.parametrize(("script", "flags"), [
    ("Object_Detection.py", "{video} --output /proc/out.mp4 --device cpu --trained_model {checkpoint}"),
    ("Object_Detection.py", "{video} --json /proc/found.jsonl --device cpu --trained_model {checkpoint}"),
    ("train.py", "--dataset {images} --train_split val --save_folder /proc/run"),
    ("eval.py", "--dataset {images} --save_folder /proc/report --trained_model {checkpoint}"),
])  # fmt: skip
def test_a_place_that_takes_no_files(tmp_path, start, video, images, checkpoint, script, flags):
    flags = flags.format(video=video, checkpoint=checkpoint, images=images)
    start(script, flags, tmp_path / "run").assert_refused("/proc/")
    assert files(tmp_path / "run") == []
