"""Damaged and hostile archives of data sets."""

import io
import os
import shutil
import tarfile
import zipfile

import pytest
from mutation import mutate_bytes
from trials import attack

from utils.download import unpack

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="inputs are tried in a forked process")

FILES = {"VOC/Annotations/1.xml": b"<annotation/>" * 20, "VOC/größe.jpg": bytes(range(256)) * 4, "VOC/empty.txt": b""}
TOKENS = [
    b"../",
    b"/etc/",
    b"\0",
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"ustar",
    b"1",
    b"2",
    b"L",
    b"x",
    b"S",
    b"\\",
]


def tar(form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in {**FILES, "x" * 150: b"long name"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(compression):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "seeds"),
    [
        ("tar", [tar(tarfile.PAX_FORMAT), tar(tarfile.GNU_FORMAT)]),
        ("zip", [zipped(zipfile.ZIP_STORED), zipped(zipfile.ZIP_DEFLATED), zipped(zipfile.ZIP_LZMA)]),
    ],
)
def test_archives(kind, seeds, tmp_path, count):
    def make(rng, folder):
        data = bytearray(mutate_bytes(rng, seeds, TOKENS))
        if kind == "tar" and rng.random() < 0.7:
            _right_checksums(data)
        path = folder / f"archive.{kind}"
        path.write_bytes(data)
        return path

    def read(path):
        inside = path.parent / "room" / "inside"
        inside.mkdir(parents=True)
        try:
            unpack(path, inside)
        finally:
            assert sorted(found.name for found in path.parent.joinpath("room").iterdir()) == ["inside"]
            assert not any(found.is_symlink() for found in inside.rglob("*"))
            shutil.rmtree(inside)

    attack(f"archive, {kind}", make, read, count(400), tmp_path)


def _right_checksums(data):
    """Put the checksum of every block right that looks like a tar header."""
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
