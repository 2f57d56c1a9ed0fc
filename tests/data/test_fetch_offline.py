"""No network, or half a one: the scripts end within seconds, in one line that says what to do by hand."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import data.connection
import data.fetch
from data.fetch import Remote, fetch
from utils.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def black_hole():
    """The port of a host whose queue is full: connections are neither taken nor refused, as behind a dead router."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            waiting.append(client)
        time.sleep(0.05)
        yield server.getsockname()[1]
        for client in waiting:
            client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_never_answers_is_left_after_one_try(tmp_path, black_hole, monkeypatch, scheme):
    monkeypatch.setattr(data.connection, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("tried again"))
    with pytest.raises(
        InputError, match=r"no connection to 127\.0\.0\.1 \(no answer within 0\.3 s\); get it from"
    ) as caught:
        fetch(Remote("file.bin", f"{scheme}://127.0.0.1:{black_hole}/file.bin"), tmp_path)
    assert f"put it into {tmp_path}" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_host_that_takes_the_connection_and_never_encrypts_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(data.connection, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"https://127.0.0.1:{server.getsockname()[1]}/file.bin"
        with pytest.raises(InputError, match=r"no answer within 0\.3 s"):
            fetch(Remote("file.bin", address), tmp_path)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "nonsense", "http://", "http://[", "ftp://127.0.0.1:1"])
def test_a_proxy_that_is_none_ends_in_one_line(tmp_path, monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(data.fetch, "PAUSES", (0.0,))
    monkeypatch.setattr(data.connection, "CONNECT_SECONDS", 2.0)
    with pytest.raises(InputError, match=r"file\.bin can't be fetched"):
        fetch(Remote("file.bin", "http://127.0.0.1:9/file.bin"), tmp_path)


def test_the_download_script_ends_in_one_line_and_code_2(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        proxy = f"http://127.0.0.1:{port}"  # bound and not listening: refused, as on a machine without a network
        environment = {**os.environ, "http_proxy": proxy, "https_proxy": proxy, "no_proxy": "", "NO_PROXY": ""}
        command = [sys.executable, "-m", "weights.download", "ssd300_mAP_77.43_v2.pth", "--folder", str(tmp_path)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    assert "get it from https://" in errors[0]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_server_s_words_are_cut_short(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 404 " + b"x" * 10_000 + b"\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/file.bin"
        with pytest.raises(InputError, match="the server answers 404 x") as caught:
            fetch(Remote("file.bin", address), tmp_path)
    assert len(str(caught.value)) < 1000


def test_many_at_once_fetch_once(tmp_path):
    """Six threads, each with its own lock on the file, and a server that counts."""
    import hashlib

    from fileserver import serve

    content = bytes(range(256)) * 100
    with serve(content, "slow") as server:
        remote = Remote("file.bin", server.address, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        outcomes = []
        threads = [
            threading.Thread(target=lambda: outcomes.append(fetch(remote, tmp_path, progress=False))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert outcomes == [tmp_path / "file.bin"] * 6
        assert server.requests == [None]
    assert (tmp_path / "file.bin").read_bytes() == content
