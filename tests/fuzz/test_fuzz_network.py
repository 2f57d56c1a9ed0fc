"""Servers that answer with anything: the file arrives whole and right, or it is refused by name; never a bad file."""

import contextlib
import hashlib
import os
import shutil
import socket
import threading

import pytest
from mutation import mutate_bytes
from trials import attack

from utils import download
from utils.download import Remote, fetch
from utils.errors import InputError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="inputs are tried in a forked process")

CONTENT = bytes(range(256)) * 4
TYPE = b"Content-Type: application/octet-stream\r\n"
HEAD = b'HTTP/1.1 200 OK\r\nServer: x\r\nETag: "1"\r\n' + TYPE + b"Content-Length: 1024\r\n\r\n"
PART = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 512-1023/1024\r\nContent-Length: 512\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + CONTENT + b"\r\n0\r\n\r\n"
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
SEEDS = [HEAD + CONTENT, HEAD + CONTENT[:512], PART + CONTENT[512:], CHUNKED, REDIRECT]
TOKENS = [
    b"\r\n", b"\n", b"404", b"500", b"416", b"100", b"-1", b"9" * 30, b"bytes */1024", b"x" * 70_000, b"\0",
    b"ffffffffffffffff\r\n", b"Content-Encoding: gzip\r\n", b"Content-Type: text/html\r\n",
    b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"Location: file:///etc/passwd\r\n",
    b"Location: http://[\r\n", b"Location: //\xff\r\n",
]  # fmt: skip


@contextlib.contextmanager
def raw_server(answers):
    """A server that takes each connection's answer from the iterator, whatever was asked; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work():
            with contextlib.suppress(OSError):
                for answer in answers:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/file.bin"
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("checksum", ["sha256", "length only"])
def test_answers_of_a_server(tmp_path, count, monkeypatch, checksum):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "BACKOFF", 0)
    monkeypatch.setattr(download, "_check_reachable", lambda _: None)  # its connection would take an answer
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.5)
    known = f"sha256 {hashlib.sha256(CONTENT).hexdigest()}" if checksum == "sha256" else None
    current = {}

    def make(rng, folder):
        room = folder / "room"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir()
        if rng.random() < 0.5:
            (room / "file.bin.part").write_bytes(CONTENT[:512])
        current["rng"] = rng
        return room / "file.bin"

    def read(path):
        rng = current["rng"]
        answers = (mutate_bytes(rng, SEEDS, TOKENS) if rng.random() < 0.7 else rng.choice(SEEDS) for _ in range(20))
        with raw_server(answers) as address:
            try:
                fetch(Remote("file.bin", address, 1024, known), path.parent)
            except InputError:
                assert not path.exists()
                raise
        assert path.stat().st_size == 1024
        if checksum == "sha256":
            assert path.read_bytes() == CONTENT

    attack(f"answers of a server, {checksum}", make, read, count(120), tmp_path)
