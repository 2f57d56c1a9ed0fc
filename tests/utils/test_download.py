"""Downloads: complete and verified or not there at all, whatever the server does; archives; the data sets' scripts."""

import dataclasses
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from checks import refused
from fileserver import make_tar, make_zip, serve

from data.scripts import download as script
from utils import download
from utils.download import Remote, fetch, unpack

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 5000  # 1,280,000 bytes: hashed in two blocks
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def quick_and_direct(monkeypatch):
    monkeypatch.setattr(download, "BACKOFF", 0)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def remote(server, size=1_280_000, checksum=f"sha256 {SHA256}"):
    return Remote("file.bin", server.address, size, checksum)


@pytest.mark.parametrize("behaviors", [
    ("good",), ("redirect_on", "good"), (503, 500, "good"), ("hangs_up", "good"),
    ("cut_off", "cut_off", "cut_off", "good"), ("cut_off", "ignores_range"),
])  # fmt: skip
def test_the_file_arrives_complete(tmp_path, behaviors):
    with serve(CONTENT, *behaviors) as server:
        path = fetch(remote(server), tmp_path / "new" / "folder")
        assert len(server.requests) == len(behaviors)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]  # neither .part nor .lock is left


@pytest.mark.parametrize(("behavior", "reason"), [
    (404, "404 Client Error"), (500, "too many 500 error responses"), ("web_page", "web page"),
    ("redirect_to_ftp", "No connection adapters were found for 'ftp://"), ("wrong_bytes", "found sha256"),
    ("too_short", "offers 1,279,993 bytes, expected 1,280,000"), ("endless", "found 3,840,000 bytes, expected"),
    ("ignores_range_and_cuts_off", r"IncompleteRead\(640000 bytes read"), ("hangs_up", "closed connection without"),
    ("hold", "timed out"),
])  # fmt: skip
def test_a_bad_server_leaves_no_file(tmp_path, monkeypatch, behavior, reason):
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.2 if behavior == "hold" else 30)
    with serve(CONTENT, behavior) as server:
        message = refused(reason, fetch, remote(server), tmp_path)
    assert message.startswith("file.bin: ")
    assert f"get it from {server.address} (sha256 {SHA256}) and put it into {tmp_path}" in message
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.parametrize(("size", "checksum"), [
    (len(CONTENT), f"sha256 {SHA256}"), (None, f"sha256 {SHA256[:8]}"), (None, f"md5 {MD5}"),
])  # fmt: skip
@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"more", CONTENT])
def test_what_an_earlier_run_left_is_verified(tmp_path, left, size, checksum):
    (tmp_path / "file.bin.part").write_bytes(left)
    with serve(CONTENT) as server:
        assert fetch(remote(server, size, checksum), tmp_path).read_bytes() == CONTENT
        assert len(server.requests) == 1 + (left != CONTENT)


def test_a_file_that_is_there_is_verified_and_kept(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    with serve(CONTENT) as server:
        fetch(remote(server), tmp_path)
        (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
        refused("found 1,279,999 bytes, expected 1,280,000", fetch, remote(server), tmp_path)
    assert server.requests == []
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[:-1]


def test_without_a_published_checksum_nothing_is_resumed(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    with serve(CONTENT, "cut_off", "good") as server:
        assert fetch(remote(server, None, None), tmp_path).read_bytes() == CONTENT
        assert server.requests == ["bytes=0-"] * 2


def test_https_is_not_left_for_http(tmp_path, monkeypatch):
    def redirect(self, request, **_):
        response = requests.Response()
        response.status_code, response.request, response.url, response.raw = 302, request, request.url, io.BytesIO()
        response.headers["Location"] = "http://127.0.0.1:9/"
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirect)
    elsewhere = Remote("file.bin", "https://files.invalid/file.bin")
    refused("No connection adapters were found for 'http://127.0.0.1:9/'", fetch, elsewhere, tmp_path)


def start_fetching(server, folder, first=""):
    """Another process that fetches the server's file."""
    code = f"{first}\nfrom utils.download import *\nfetch({remote(server)!r}, {str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_full_disk_leaves_no_file(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))"
    with serve(CONTENT) as server:
        with start_fetching(server, tmp_path, limit) as process:
            assert "InputError: " + str(tmp_path / "file.bin: not written (File too large)") in process.stderr.read()
        assert not (tmp_path / "file.bin").exists()
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    (tmp_path / "file").touch()
    refused("choose another folder", fetch, remote(server), tmp_path / "file" / "folder")


def test_two_processes_download_once(tmp_path):
    with serve(CONTENT, "hold") as server:
        with start_fetching(server, tmp_path) as first:
            assert server.held.wait(60)
            with start_fetching(server, tmp_path) as second:
                assert "waiting for another process" in second.stderr.readline()
                server.release.set()
        assert (first.returncode, second.returncode) == (0, 0)
        assert len(server.requests) == 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [tmp_path / "file.bin"]


def test_a_killed_process_leaves_its_part_which_the_next_runs_resume(tmp_path):
    part = tmp_path / "file.bin.part"
    with serve(CONTENT, "hold", 404, "good") as server:
        with start_fetching(server, tmp_path) as process:
            while process.poll() is None and not (part.exists() and part.stat().st_size):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        kept = part.stat().st_size
        refused("404", fetch, remote(server), tmp_path)
        fetch(remote(server), tmp_path)
    assert server.requests == ["bytes=0-", f"bytes={kept}-", f"bytes={kept}-"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(("content", "reason"), [
    (b"", ""), (b"no archive", ""), (make_tar({"a": b"1" * 2000})[:1800], ""),
    (make_zip({"a": b"1" * 99}).replace(b"1111", b"1121", 1), "Bad CRC-32"),
    *((make({path: b"x"}), "contains the path") for make in (make_tar, make_zip) for path in (
        "../outside", "/tmp/outside", "a/../../outside", "..\\outside", "C:outside",
    )),
])  # fmt: skip
def test_a_damaged_or_unsafe_archive_is_named_and_writes_nothing_outside(tmp_path, content, reason):
    (tmp_path / "archive").write_bytes(content)
    message = refused(reason, unpack, tmp_path / "archive", tmp_path / "folder")
    assert message.startswith(f"{tmp_path}/archive: damaged or unsafe")
    assert {path.name for path in tmp_path.iterdir()} <= {"archive", "folder"}
    assert not Path("/tmp/outside").exists()


VOC_ARCHIVE = script._voc("2007", "a.tar", 0, "", "trainval")
VOC_FILE = "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"


@contextmanager
def published(monkeypatch, data_set, archive, content):
    """Within it, a data set is one archive of this content, on a server."""
    checksum = f"md5 {hashlib.md5(content).hexdigest()}"
    with serve(content) as server:
        entry = dataclasses.replace(archive, address=server.address, size=len(content), checksum=checksum)
        monkeypatch.setitem(script.ARCHIVES, data_set, [entry])
        yield server


def run(name, folder, *flags):
    script.main(script.get_args_parser().parse_args([name, "--folder", str(folder), *flags]))


def test_voc_is_downloaded_unpacked_and_then_left_alone(tmp_path, monkeypatch, capsys):
    with published(monkeypatch, "VOC2007", VOC_ARCHIVE, make_tar({VOC_FILE: b"x"})) as server:
        run("VOC2007", tmp_path)
        assert capsys.readouterr().out.endswith(f"VOC2007: complete in {tmp_path}\n")
        assert list(tmp_path.iterdir()) == [tmp_path / "VOCdevkit"]  # neither archive nor lock
        run("VOC2007", tmp_path / "VOCdevkit")  # the folder that train.py names
        assert len(server.requests) == 1
        lost = tmp_path / VOC_FILE
        for _ in range(2):
            lost.write_bytes(b"")
            run("VOC2007", tmp_path, "--keep_archives")
            assert (len(server.requests), lost.read_bytes()) == (2, b"x")  # the second time, the archive is there


def test_coco_is_downloaded_and_unpacked(tmp_path, monkeypatch):
    annotations, images = script.ARCHIVES["COCO2017"][:2]
    files = {f"annotations/instances_{split}2017.json": b"x" for split in ("val", "train")}
    with published(monkeypatch, "COCO2017", annotations, make_zip(files)):
        run("COCO2017", tmp_path)
    assert all((tmp_path / "coco" / name).read_bytes() == b"x" for name in files)
    with published(monkeypatch, "COCO2017", images, make_zip({"val2017/1.jpg": b"x"})):
        refused("matches 1 files, expected 5,000", run, "COCO2017", tmp_path)
    assert (tmp_path / "coco" / "images" / "val2017" / "1.jpg").read_bytes() == b"x"


def test_voc_s_addresses_and_checksums_are_torchvision_s():
    """torchvision 0.26 names the server by an older name."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    facts = DATASET_YEAR_DICT.values()
    published = {(fact["url"].replace("http://host.", "https://thor."), f"md5 {fact['md5']}") for fact in facts}
    assert {(a.address, a.checksum) for name in ("VOC2007", "VOC2012") for a in script.ARCHIVES[name]} <= published


@pytest.mark.skipif(os.name != "posix", reason="the lineage's scripts are for sh; download.py runs everywhere")
def test_the_lineage_s_scripts_call_it(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho $*\n")
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for path in (ROOT / "data" / "scripts").glob("*.sh"):
        copy = Path(shutil.copy(path, tmp_path))  # the repository's .venv would be preferred
        for folder, flags in (([], ""), (["/data"], " --folder /data")):
            done = subprocess.run(["sh", copy, *folder], env=environment, capture_output=True, text=True, check=True)
            assert done.stdout == f"{tmp_path}/download.py {path.stem}{flags}\n"


def test_the_weights_script_ends_in_one_line_and_code_2(tmp_path):
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:1", "no_proxy": ""}  # refused, as without a network
    command = [sys.executable, "-m", "weights.download", "ssd300_mAP_77.43_v2.pth", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "Connection refused); get it from https://s3.amazonaws.com/" in line
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
