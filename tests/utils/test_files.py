"""Files that are written as a whole or not at all, and checked. For their hash see test_download.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from media import names

from utils import files
from utils.errors import InputError
from utils.files import check_regular, whole_file

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, sys
from pathlib import Path
from utils.files import whole_file
with whole_file(sys.argv[1]) as temporary:
    temporary.write_text("half of i")
    os.kill(os.getpid(), 9)
"""
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals, links and permissions of POSIX")


@pytest.fixture(autouse=True)
def first_write_in_each_folder():
    files.remove_unfinished.cache_clear()


@needs_posix
def test_a_file_appears_when_it_is_complete(tmp_path):
    """A link stays, and its target is replaced."""
    path, link = tmp_path / "größe.json", tmp_path / "link.json"
    link.symlink_to(path)
    for text in ("first", "second"):
        with whole_file(str(link)) as temporary:
            temporary.write_text(text)
            assert (temporary.parent, temporary.suffix) == (tmp_path, ".json")
            assert path.exists() == (text == "second")
        assert path.read_text() == text
    assert link.is_symlink()
    assert names(tmp_path) == [path.name, link.name]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "of another file", "b"), KeyboardInterrupt(), InputError("")])
def test_an_error_leaves_the_earlier_file_and_is_not_blamed_on_it(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(type(error)) as caught, whole_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["a.txt"]


@needs_posix
def test_a_killed_process_leaves_the_earlier_file_and_the_next_one_cleans_up(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    running = tmp_path / f".writing-{files._MACHINE}-{os.getpid()}-0.txt"
    foreign = tmp_path / ".writing-another-machine-1-0.txt"
    running.touch()
    foreign.touch()
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert path.read_text() == "earlier"
    assert len(names(tmp_path)) == 4
    with whole_file(tmp_path / "b.txt") as temporary:
        temporary.touch()
    assert names(tmp_path) == sorted(["a.txt", "b.txt", running.name, foreign.name])


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "gone" / "a.txt", tmp_path / "file" / "a.txt", tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(InputError) as caught, whole_file(path) as temporary:
            temporary.write_text("text")
        assert str(caught.value).startswith(f"{path}: ")
    assert names(tmp_path) == ["file"]


@needs_posix
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "missing", "NUL"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = {"folder": tmp_path, "device": Path("/dev/zero"), "NUL": "a\0b"}.get(kind, tmp_path / kind)
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(OSError) as caught:
        check_regular(path)
    assert caught.value.strerror
    check_regular(__file__)
