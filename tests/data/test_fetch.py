"""Downloading: whole and right, or not at all, whatever the server does."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fileserver import serve

import data.connection
import data.fetch
from data.fetch import Remote, fetch, only_one
from utils.errors import InputError

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(data.fetch, "PAUSES", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def remote(server, **known):
    """The server's file, its size and sha256 known unless told otherwise."""
    return Remote("file.bin", server.address, **({"size": len(CONTENT), "sha256": SHA256} | known))


def names(folder):
    """The files in a folder, without locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(
    "behaviours",
    [
        ("good",),
        ("slow",),
        ("no_length",),
        ("nonsense_length",),
        ("redirect_on", "good"),
        (503, 500, "good"),
        ("hangs_up", "good"),
        ("sends_nothing", "good"),
        ("cut_off", "good"),
        ("cut_off", "cut_off", "cut_off", "good"),
        ("cut_off", "ignores_range"),
        ("cut_off", "other_part", "good"),
        ("cut_off", "wrong_bytes", "good"),
    ],
    ids=lambda behaviours: "-".join(map(str, behaviours)),
)
def test_the_file_arrives_whole(tmp_path, behaviours):
    with serve(CONTENT, *behaviours) as server:
        path = fetch(remote(server), tmp_path / "new" / "folder")
        assert len(server.requests) == len(behaviours)
    assert path == tmp_path / "new" / "folder" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]  # neither .part nor .lock is left


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (404, "404 Not Found"),
        (403, "403 Forbidden"),
        (500, "500 Internal Server Error"),
        (204, "HTTP 204"),
        ("redirect_loop", "redirects without end"),
        ("redirect_to_file", "isn't safe"),
        ("web_page", "web page"),
        ("wrong_bytes", "its sha256 is"),
        ("too_short", "offers 102,393 bytes and the published file has 102,400"),
        ("too_long", "offers 102,404 bytes"),
        ("endless", "sends more than the 102,400 bytes"),
        ("sends_nothing", "ended after 0 of 102,400 bytes"),
        ("ignores_range_and_cuts_off", "ended after 51,200 of 102,400 bytes"),
        ("hangs_up", "broke off"),
    ],
)
def test_nothing_bad_is_left_in_place(tmp_path, behaviour, reason):
    with serve(CONTENT, behaviour) as server, pytest.raises(InputError) as caught:
        fetch(remote(server), tmp_path)
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    for part in ("file.bin", server.address, str(tmp_path), SHA256):
        assert part in message
    assert "file.bin" not in names(tmp_path)
    assert len(server.requests) <= 11  # ten redirects at most


def test_wrong_bytes_are_not_kept_for_the_next_run(tmp_path):
    with serve(CONTENT, "wrong_bytes", "good") as server:
        with pytest.raises(InputError, match="not the published file"):
            fetch(remote(server), tmp_path)
        assert names(tmp_path) == []
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_cut_off_transfer_goes_on_in_the_next_run(tmp_path):
    with serve(CONTENT, "cut_off", 404, "good") as server:
        with pytest.raises(InputError, match="404"):
            fetch(remote(server), tmp_path)
        assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:51200]
        fetch(remote(server), tmp_path)
    assert server.requests == [None, "bytes=51200-", "bytes=51200-"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"more"], ids=["begun", "full", "longer"])
def test_a_bad_beginning_of_an_earlier_run_is_thrown_away(tmp_path, left):
    (tmp_path / "file.bin.part").write_bytes(left)
    with serve(CONTENT, "good") as server:
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_whole_part_needs_no_request(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    with serve(CONTENT, 500) as server:
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == []


def test_a_whole_part_of_unknown_size_is_recognised(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    with serve(CONTENT, "good") as server:
        assert fetch(remote(server, size=None), tmp_path).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT)}-"]


def test_the_end_of_a_changed_file_is_not_joined_to_our_beginning(tmp_path):
    with serve(CONTENT, "cut_off", "good", headers={"ETag": '"one"'}) as server:
        fetch(remote(server), tmp_path)
    assert server.if_range == [None, '"one"']


def test_a_file_that_is_there_is_checked_and_kept(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    with serve(CONTENT, 500) as server:
        fetch(remote(server), tmp_path)
        (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
        with pytest.raises(InputError, match="102,399 bytes and should have 102,400; move it away"):
            fetch(remote(server), tmp_path)
    assert server.requests == []
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[:-1]


@pytest.mark.parametrize("known", [{"sha256": SHA256[:8]}, {"sha256": SHA256.upper()}, {"sha256": None, "md5": MD5}])
@pytest.mark.parametrize("behaviour", ["good", "wrong_bytes"])
def test_checksums_in_all_their_forms(tmp_path, known, behaviour):
    with serve(CONTENT, behaviour) as server:
        if behaviour == "good":
            assert fetch(remote(server, size=None, **known), tmp_path).read_bytes() == CONTENT
        else:
            with pytest.raises(InputError, match="should be"):
                fetch(remote(server, size=None, **known), tmp_path)


def test_without_a_published_checksum_one_line_says_so(tmp_path, capsys):
    with serve(CONTENT, "good") as server:
        fetch(remote(server, size=None, sha256=None), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "can't be verified" in line]
    assert len(lines) == 1
    assert SHA256 in lines[0]


def test_without_a_checksum_halves_are_joined_only_if_the_server_vouches(tmp_path):
    unknown = {"size": None, "sha256": None}
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)  # of an earlier run: nobody knows of which version
    with serve(CONTENT, "cut_off", "good", headers={"ETag": 'W/"weak"'}) as server:
        assert fetch(remote(server, **unknown), tmp_path).read_bytes() == CONTENT
        assert server.requests == [None, None]
    with serve(CONTENT, "cut_off", "good", headers={"ETag": '"strong"'}) as server:
        assert fetch(remote(server, **unknown), tmp_path / "2").read_bytes() == CONTENT
        assert server.requests == [None, "bytes=51200-"]
    with serve(CONTENT, "no_length") as server, pytest.raises(InputError, match="doesn't say how long"):
        fetch(remote(server, **unknown), tmp_path / "3")


def test_a_server_that_falls_silent_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(data.fetch, "SILENCE_SECONDS", 0.2)
    with serve(CONTENT, "hold", "good") as server:
        fetch(remote(server), tmp_path)
    assert server.requests == [None, "bytes=51200-"]
    with serve(CONTENT, "hold") as server, pytest.raises(InputError, match="silent for 0.2 s"):
        fetch(remote(server), tmp_path / "2")


def test_a_long_transfer_may_break_off_more_often_than_a_short_one(tmp_path, monkeypatch):
    monkeypatch.setattr(data.fetch, "BLOCK", 1000)  # what a try has to bring to count as progress
    with serve(CONTENT, *["cut_off"] * 5, "good") as server:
        fetch(remote(server), tmp_path)
    assert len(server.requests) == 6 > len(data.fetch.PAUSES) + 1


def test_offline_ends_soon_and_clearly(tmp_path, monkeypatch):
    assert data.connection.CONNECT_SECONDS < 5
    monkeypatch.setattr(data.connection, "CONNECT_SECONDS", 0.1)
    done = threading.Event()

    def look_up(*_, **__):  # a name server that doesn't answer
        done.wait(20)
        raise socket.gaierror("gave up")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(InputError) as caught:
        fetch(Remote("file.bin", "http://files.invalid/file.bin", sha256=SHA256), tmp_path)
    done.set()
    assert "no connection to files.invalid (no answer within 0.1 s)" in str(caught.value)
    assert f"(sha256 {SHA256})" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_closed_port_is_not_tried_again(tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(InputError, match=r"no connection to 127\.0\.0\.1"):
        fetch(Remote("file.bin", f"http://127.0.0.1:{port}/file.bin"), tmp_path)


def test_proxies_of_the_environment_are_used(tmp_path, monkeypatch):
    with serve(CONTENT, "good") as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        fetch(Remote("file.bin", "http://files.invalid/a.bin", sha256=SHA256), tmp_path)
    assert server.paths == ["http://files.invalid/a.bin"]


def test_an_encrypted_address_is_not_left_for_an_open_one():
    request = data.connection.urllib.request.Request("https://files.invalid/file.bin")
    with pytest.raises(data.connection.UnsafeRedirect, match=r"http://files\.invalid"):
        data.connection._RedirectHandler().redirect_request(
            request, None, 302, "Found", {}, "http://files.invalid/file.bin"
        )


def test_too_little_space_is_seen_before_the_transfer(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5))
    with serve(CONTENT, "good") as server, pytest.raises(InputError, match="0 MB free"):
        fetch(remote(server), tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        fetch(Remote("file.bin", "http://127.0.0.1:9/"), tmp_path / "file" / "folder")


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_full_disk_leaves_no_file(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000)); "
    ignore = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    with serve(CONTENT, "good") as server:
        with start_fetching(server, tmp_path, first=limit + ignore) as process:
            _, error = process.communicate(timeout=120)
        assert "InputError" in error
        assert "can't be written" in error
        assert "file.bin" not in names(tmp_path)
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def start_fetching(server, folder, first=""):
    """Another process that fetches the server's file."""
    # The package `data` without its __init__, which imports torch: that takes seconds, and fetching doesn't need it.
    bare = (
        "import sys, types; sys.modules['data'] = types.ModuleType('data'); sys.modules['data'].__path__ = ['data']; "
    )
    code = f"{bare}{first}import data.fetch as f; print(f.fetch(f.{remote(server)!r}, {str(folder)!r}))"
    command = [sys.executable, "-u", "-c", code]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_download_once(tmp_path):
    with serve(CONTENT, "hold") as server:
        with start_fetching(server, tmp_path) as first, start_fetching(server, tmp_path) as second:
            assert server.held.wait(60)
            # The one that came late says so; only then does the other's transfer go on.
            waiting = threading.Thread(target=release_when_one_waits, args=(server, first, second))
            waiting.start()
            outputs = [process.stdout.read().strip() for process in (first, second)]
            waiting.join()
        assert outputs == [str(tmp_path / "file.bin")] * 2
        assert server.requests == [None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [tmp_path / "file.bin"]


def release_when_one_waits(server, *processes):
    """Read both processes' stderr until one says that it waits."""

    def watch(process):
        for line in process.stderr:
            if "another process" in line:
                server.release.set()

    watchers = [threading.Thread(target=watch, args=(process,)) for process in processes]
    for thread in watchers:
        thread.start()
    for thread in watchers:
        thread.join()


def test_a_killed_process_leaves_what_it_had_and_no_lock(tmp_path):
    with serve(CONTENT, "hold", "good") as server:
        with start_fetching(server, tmp_path) as process:
            assert server.held.wait(60)
            part = tmp_path / "file.bin.part"
            while process.poll() is None and not (part.exists() and part.stat().st_size):
                time.sleep(0.01)
            process.kill()
        assert "file.bin" not in names(tmp_path)
        fetch(remote(server), tmp_path)
    assert server.requests[0] is None
    assert len(server.requests) == 2
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_the_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_one(tmp_path / "x"):
        raise ZeroDivisionError
    with only_one(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []
