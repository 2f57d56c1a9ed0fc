"""What the check before a run remembers from one time to the next, and how ranks share the reading."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from synthetic import make_voc, write_annotation, write_image, write_split

from data import VOCDetection
from training import facts
from training.facts import as_annotation, read_files, read_objects, read_size
from utils.errors import InputError

COUNT = 5  # pictures, of 100 x 80
CAT, DOG = ("cat", (11, 11, 50, 50), False), ("dog", (21, 31, 90, 70), None)
NOTHING = {"read_bgr": 0, "read_annotation": 0}
ALL = {"read_bgr": COUNT, "read_annotation": COUNT}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder, far from the user's own."""
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    return make_voc(tmp_path / "mine", {f"p{i}": [CAT, DOG] for i in range(COUNT)}, split="train")


@pytest.fixture
def reads(monkeypatch):
    """How many files have been read: {"read_bgr": n, "read_annotation": n}."""
    counts = dict(NOTHING)

    def count(name, function):
        def counted(path):
            counts[name] += 1
            return function(path)

        monkeypatch.setattr(facts, name, counted)

    count("read_bgr", facts.read_bgr)
    count("read_annotation", facts.read_annotation)
    return counts


def read(folder, split="train", say=print):
    """{name of the file: what it holds} of a split."""
    pictures = VOCDetection(folder, [("", split)])
    readers = {str(pictures.image_path(index)): read_size for index in range(len(pictures))}
    readers |= {str(pictures.annotation_path(index)): read_objects for index in range(len(pictures))}
    return {Path(path).name: value for path, value in read_files(readers, folder, split, 2, say).items()}


# --- memory ---------------------------------------------------------------------------------------------------------


def test_what_files_hold(folder):
    write_image(folder / "JPEGImages" / "p1.jpg", (90, 70))
    found = read(folder)
    assert len(found) == 2 * COUNT
    assert found["p0.jpg"] == [100, 80]
    assert found["p1.jpg"] == [90, 70]
    assert found["p0.xml"] == [100, 80, [[11, 11, 50, 50, "cat", False], [21, 31, 90, 70, "dog", False]]]
    annotation = as_annotation(found["p0.xml"])
    assert annotation.boxes.tolist() == [[11, 11, 50, 50], [21, 31, 90, 70]]
    assert (annotation.names, annotation.difficult.tolist()) == (("cat", "dog"), [False, False])
    assert (annotation.width, annotation.height) == (100, 80)


def test_nothing_is_read_twice_but_what_changed(folder, reads):
    first = read(folder)
    assert reads == ALL
    reads.update(NOTHING)
    assert read(folder) == first
    assert reads == NOTHING

    write_image(folder / "JPEGImages" / "p3.jpg", (90, 80), seed=77)
    write_annotation(folder, "p4", [CAT])
    changed = {"p3.jpg": [90, 80], "p4.xml": [100, 80, [[11, 11, 50, 50, "cat", False]]]}
    assert read(folder) == first | changed
    assert reads == {"read_bgr": 1, "read_annotation": 1}


def test_the_memory_is_json_in_the_cache_folder(folder, cache):
    found = read(folder)
    (path,) = cache.iterdir()
    files = json.loads(path.read_text())["files"]
    assert {Path(name).name: value for name, (_, value) in files.items()} == found


def test_failures_are_not_remembered(folder, reads, monkeypatch):
    path = folder / "JPEGImages" / "p3.jpg"
    sound = facts.read_bgr

    def down_for_a_moment(given):
        if given == str(path):
            raise InputError(f"{given}: can't read the picture (Stale file handle)")
        return sound(given)

    monkeypatch.setattr(facts, "read_bgr", down_for_a_moment)
    assert isinstance(read(folder)["p3.jpg"], InputError)
    monkeypatch.setattr(facts, "read_bgr", sound)
    reads.update(NOTHING)
    assert read(folder)["p3.jpg"] == [100, 80]
    assert reads == {"read_bgr": 1, "read_annotation": 0}


def test_a_file_that_has_gone_is_noticed(folder):
    read(folder)
    path = folder / "JPEGImages" / "p3.jpg"
    path.unlink()
    for _ in range(2):
        assert str(read(folder)["p3.jpg"]).startswith(f"{path}: can't read the picture (No such file")


def with_every_value(value):
    """Spoils a memory: keeps the stamps, and puts `value` in the place of what was read."""

    def spoil(text):
        contents = json.loads(text)
        contents["files"] = {path: [stamp, value] for path, (stamp, _) in contents["files"].items()}
        return json.dumps(contents)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "\x80 no JSON",
        lambda text: "[" * 100_000,
        lambda text: "null",
        lambda text: '{"format": "of another time", "files": {}}',
        lambda text: json.dumps({"format": facts.FORMAT, "files": [1, 2]}),
        lambda text: json.dumps({"format": facts.FORMAT, "files": dict.fromkeys(json.loads(text)["files"], 7)}),
        with_every_value([0, "wide"]),
        with_every_value([-100, 80]),
        with_every_value(None),
        with_every_value("x"),
        with_every_value([100, 80, [[1, 2, 3]]]),
        with_every_value([100, 80, [[1, 2, float("nan"), 4, "cat", False]]]),
        with_every_value([100, 80, [[1, 2, 10**400, 4, "cat", False]]]),
        with_every_value([100, 80, [[1, 2, 3, 4, {}, False]]]),
    ],
)
def test_a_spoiled_memory_is_no_memory(folder, cache, reads, spoil):
    first = read(folder)
    (path,) = cache.iterdir()
    whole = path.read_text()
    path.write_text(spoil(whole))
    reads.update(NOTHING)
    assert read(folder) == first
    assert reads == ALL
    assert path.read_text() == whole


def test_splits_are_remembered_apart(folder, cache, reads):
    write_split(folder, "few", ["p0", "p1"])
    read(folder)
    read(folder, "few")
    assert len(list(cache.iterdir())) == 2
    reads.update(NOTHING)
    read(folder)
    read(folder, "few")
    assert reads == NOTHING


def test_a_relative_path_means_the_same_data(folder, reads, monkeypatch):
    first = read(folder)
    monkeypatch.chdir(folder.parent)
    reads.update(NOTHING)
    assert read(Path(folder.name)) == first
    assert reads == NOTHING


# --- where it lies --------------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_is_said_and_no_more(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "file" / "below"))
    said = []
    assert read(folder, say=said.append)["p0.jpg"] == [100, 80]
    (line,) = said
    assert line.startswith("the check's result isn't kept for the next time: ")


def test_without_a_home_nothing_is_remembered(folder, reads, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SSD_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", homeless)
    assert read(folder) == read(folder)
    assert reads == {name: 2 * count for name, count in ALL.items()}


# --- ranks ----------------------------------------------------------------------------------------------------------


def one_rank(rank, port, folder, result):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    counts, sound = [], facts.read_bgr
    facts.read_bgr = lambda path: counts.append(path) or sound(path)
    found = {name: str(value) for name, value in read(folder).items()}
    Path(f"{result}-{rank}.json").write_text(json.dumps([found, len(counts)]))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_read_a_share_each_and_know_all(folder, tmp_path, cache):
    (folder / "JPEGImages" / "p2.jpg").write_bytes(b"no picture")
    alone = {name: str(value) for name, value in read(folder).items()}
    next(cache.iterdir()).unlink()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    mp.spawn(one_rank, (port, str(folder), str(tmp_path / "rank")), nprocs=2)
    results = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [found for found, _ in results] == [alone, alone]
    assert sorted(count for _, count in results) == [2, 3]
    assert len(list(cache.iterdir())) == 1
