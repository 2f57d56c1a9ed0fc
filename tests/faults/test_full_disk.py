"""A full disk at each write: one line, exit code 2, nothing half-written; and a training run goes on from before."""

import sys

import cv2
import pytest
from faulty_runs import can_mount, run_script, start_server
from media import make_video
from synthetic import make_voc, write_image
from test_train import OBJECTS, SMALL

from weights.checkpoint import read_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of files")
FULL = ["size limit", "full disk"]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Its output takes more than 16 kB."""
    start_server()
    return make_video(tmp_path_factory.mktemp("media") / "in.mp4", "320x240", frames=30)


@pytest.fixture
def full(tmp_path):
    """(script, flags, room, kind) -> Ended: run it where files (or the disk, as `disk/`) hold only `room` bytes."""

    def full(script, flags, room, kind):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        if kind == "size limit":
            (folder / "disk").mkdir(exist_ok=True)
            return run_script(script, flags, folder, file_size=room)
        (folder / "empty").mkdir()
        if not can_mount(folder / "empty"):
            pytest.skip("no disk can be mounted here")
        return run_script(script, flags, folder, disk=room)

    return full


def assert_refused(ended, named):
    """It ended in one line that names the file."""
    assert ended.code == 2, ended.err
    assert len(ended.error_lines) == 1, ended.err
    assert ended.error_lines[0].startswith("error: ")
    assert named in ended.error_lines[0]


def left(tmp_path, kind):
    """Names of the files on the disk after the run, hidden ones too."""
    folder = tmp_path / "run" / ("disk" if kind == "size limit" else "left")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", FULL)
def test_the_video(tmp_path, full, video, checkpoint, tried, kind):
    flags = f"{video} --output disk/out.mp4 --trained_model {checkpoint} --device cpu"
    assert_refused(full("Object_Detection.py", flags, 16384, kind), "out.mp4 can't be written")
    assert left(tmp_path, kind) == []
    tried(f"{kind}: output video", "one line, code 2, nothing left")


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize(("where", "number"), [("in the middle", 160), ("at the end", 30)])
def test_the_json_lines(tmp_path, full, checkpoint, tried, kind, where, number):
    """Of many small pictures: Python writes some 16 kB at a time, and the rest at the end."""
    for n in range(number):
        write_image(tmp_path / "run" / "in" / f"{n:03}.jpg", (8, 8))
    flags = f"in --json disk/found.jsonl --output out --trained_model {checkpoint} --device cpu"
    assert_refused(full("Object_Detection.py", flags, 4096, kind), "found.jsonl can't be written")
    assert left(tmp_path, kind) == []
    written = len(list((tmp_path / "run" / "out").iterdir()))
    assert written == number if where == "at the end" else 1 < written < number
    tried(f"{kind}: JSON lines", "one line, code 2, nothing left")


@pytest.mark.parametrize("kind", FULL)
def test_pictures(tmp_path, full, checkpoint, tried, kind):
    """Those that fitted are whole."""
    for n, size in enumerate([(20, 20), (400, 300), (400, 300)]):
        write_image(tmp_path / "run" / "in" / f"{n}.png", size, n)
    flags = f"in --output disk --json found.jsonl --trained_model {checkpoint} --device cpu"
    assert_refused(full("Object_Detection.py", flags, 16384, kind), "1.png can't be written")
    assert left(tmp_path, kind) == ["0.png"]
    folder = tmp_path / "run" / ("disk" if kind == "size limit" else "left")
    assert cv2.imread(str(folder / "0.png")).shape == (20, 20, 3)
    assert not (tmp_path / "run" / "found.jsonl").exists()
    tried(f"{kind}: pictures", "one line, code 2, whole pictures left")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(pictures, folder) of a run of eight iterations; the folder is for copying."""
    start_server()
    folder = tmp_path_factory.mktemp("training")
    pictures = make_voc(folder / "pictures", OBJECTS, split="train")
    flags = f"--dataset {pictures} --save_folder {folder / 'run'} {SMALL} --max_iter 8 --print_every 1"
    ended = run_script("train.py", flags, folder)
    assert ended.code == 0, ended.err
    return pictures, folder / "run"


@pytest.mark.parametrize("what", ["checkpoint", "log.csv"])
def test_training(tmp_path, trained, tried, what):
    """The state before is loadable, and the run can go on from it."""
    pictures, before = trained
    folder = tmp_path / "run"
    folder.mkdir()
    for path in before.iterdir():
        if path.is_file() and "final" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    state, table = (folder / "state_8.pth").read_bytes(), (folder / "log.csv").read_bytes()
    table += 50 * table.splitlines(keepends=True)[-1]  # longer than what the run says, which is limited as well
    (folder / "log.csv").write_bytes(table)
    room = len(state) // 2 if what == "checkpoint" else len(table) + 10
    flags = f"--dataset {pictures} --save_folder {folder} {SMALL} --max_iter 10 --print_every 1 --resume auto"
    ended = run_script("train.py", flags, tmp_path, file_size=room)
    assert_refused(ended, "state_10.pth" if what == "checkpoint" else str(folder))
    assert (folder / "state_8.pth").read_bytes() == state
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["curves.png", "log.csv", "state_8.pth"]
    assert read_file(folder / "state_8.pth")["iteration"] == 8
    again = run_script("train.py", flags, tmp_path)
    assert again.code == 0, again.err
    kept = (folder / "log.csv").read_bytes()
    assert kept.startswith(table)
    assert [line[:3] for line in kept[len(table) :].splitlines()] == [b"9,0", b"10,"]
    tried(f"size limit: {what}", "one line, code 2, resumed from the state before")


@pytest.mark.parametrize(("what", "room"), [("detection files", 2000), ("curves", 4000)])
def test_an_evaluations_report(tmp_path, full, checkpoint, tried, what, room):
    pictures = make_voc(tmp_path / "mine", {f"p{n}": [("dog", (5, 5, 60, 60), 0)] for n in range(40)})
    flags = f"--dataset {pictures} --trained_model {checkpoint} --device cpu --save_folder disk"
    ended = full("eval.py", flags, room, "size limit")
    assert_refused(ended, "can't write into disk (")
    files = left(tmp_path, "size limit")
    if what == "detection files":
        assert files == []
    else:
        assert len(files) == 20
        assert all(name.startswith("det_val_") for name in files)
    tried(f"size limit: report, {what}", "one line, code 2, nothing half-written")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that is read-only even for the root user")
@pytest.mark.parametrize(("script", "flags"), [
    ("Object_Detection.py", "{video} --output /proc/out.mp4 --device cpu --trained_model {checkpoint}"),
    ("Object_Detection.py", "{video} --json /proc/found.jsonl --device cpu --trained_model {checkpoint}"),
    ("train.py", "--dataset {pictures} --save_folder /proc/run"),
    ("eval.py", "--dataset {pictures} --save_folder /proc/report --trained_model {checkpoint}"),
])  # fmt: skip
def test_a_place_that_takes_no_files(tmp_path, video, checkpoint, tried, script, flags):
    pictures = make_voc(tmp_path / "mine", {"p": [("dog", (5, 5, 60, 60), 0)]})
    (tmp_path / "run").mkdir()
    ended = run_script(script, flags.format(video=video, checkpoint=checkpoint, pictures=pictures), tmp_path / "run")
    assert_refused(ended, "/proc/")
    assert list((tmp_path / "run").iterdir()) == []
    tried("a place that takes no files", "one line, code 2, nothing left")
