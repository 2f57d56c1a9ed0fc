"""Small files that claim or unfold to huge ones, or run code: refused by name, soon and in little memory."""

import gzip
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fileserver import make_tar, make_zip, serve
from mutation import mutate_bytes, repacked, stored
from trials import expect_refusal, try_all

from data.coco import read_coco_annotations
from data.config import voc
from data.voc0712 import read_annotation
from metrics.detection_files import read_results
from utils import MAX_PIXELS
from utils.download import unpack
from utils.errors import InputError
from utils.images import read_image
from weights.checkpoint import CheckpointInfo, load_network, save_checkpoint

ROOT = Path(__file__).parents[2]


def png(width, height):
    """Return a small PNG whose header claims another size."""
    data = cv2.imencode(".png", np.full((16, 16, 3), 99, np.uint8))[1].tobytes()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def jpeg(width, height, *settings):
    """Return a small JPEG whose header claims another size."""
    data = cv2.imencode(".jpg", np.full((16, 16, 3), 99, np.uint8), settings)[1].tobytes()
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def many_scans():
    """Return a progressive JPEG of 200 kB that a decoder works on for minutes: each scan goes over all the pixels."""
    _, data = cv2.imencode(".jpg", np.full((4000, 4000, 3), 99, np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    head, first, second, *others = data.tobytes().split(b"\xff\xda")
    return b"\xff\xda".join([head, first, *[second] * 10_000, *others])


LIFT = "set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS"


@pytest.mark.parametrize(("make", "words"), [
    # 20,000 x 20,000 is within what OpenCV allows by itself, and would take 1.2 GB before a copy is made.
    *((partial(make, side, side), LIFT) for make in (png, jpeg) for side in (60_000, 20_000)),
    (many_scans, "scans"),
])  # fmt: skip
def test_images(tmp_path, make, words):
    (tmp_path / "a.image").write_bytes(make())
    expect_refusal(tmp_path / "a.image", read_image, words)


@pytest.mark.parametrize("progressive", [0, 1])
def test_the_largest_allowed_image_costs_what_its_pixels_cost(tmp_path, progressive):
    side = int(MAX_PIXELS**0.5) - 8
    (tmp_path / "a.jpg").write_bytes(jpeg(side, side, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive))
    try_all("bomb", tmp_path / "a.jpg", None, read_image)


@pytest.mark.parametrize("package", ["data", "inference"])
def test_the_limit_is_set_before_opencv_reads_it(tmp_path, package):
    """Which it does once, when it is imported."""
    (tmp_path / "a.png").write_bytes(png(20_000, 20_000))
    code = f"import {package}; from utils.images import read_image; read_image({str(tmp_path / 'a.png')!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert LIFT in done.stderr


OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
LAUGHS = "".join(f'<!ENTITY {y} "{f"&{x};" * 10}">' for x, y in zip("abcdefghi", "bcdefghij", strict=True))


@pytest.mark.parametrize("start", [
    f'<!DOCTYPE a [<!ENTITY a "ha">{LAUGHS}]>', f'<!DOCTYPE a [<!ENTITY j "{"x" * 200_000}">]>',
    '<!DOCTYPE a [<!ENTITY j SYSTEM "file:///etc/passwd">]>', "<object>" * 200_000,
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p; <!ENTITY j "x">]>',
    f'<!DOCTYPE a [<!ENTITY {"x" * 9999} "x">]>',
], ids=["billion laughs", "one long entity", "a file", "deep nesting", "a parameter entity", "long name"])  # fmt: skip
def test_annotations(tmp_path, start):
    (tmp_path / "a.xml").write_text(f"{start}<annotation>{OBJECT.format('&j;' * 100)}</annotation>")
    expect_refusal(tmp_path / "a.xml", read_annotation)


def test_an_annotation_fetches_nothing(tmp_path):
    with serve(b'<!ENTITY j "cat">') as server:
        for doctype in (f'a SYSTEM "{server.address}"', f'a [<!ENTITY j SYSTEM "{server.address}">]'):
            (tmp_path / "a.xml").write_text(f"<!DOCTYPE {doctype}><annotation>{OBJECT.format('cat')}</annotation>")
            with suppress(InputError):
                assert read_annotation(tmp_path / "a.xml").names == ("cat",)
        assert server.requests == []


@pytest.mark.parametrize("text", [
    "[" * 200_000, '{"images":' * 200_000, "[" * 200_000 + "]" * 200_000, "9" * 100_000,
    json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 10**400, 1], "score": 1}]),
], ids=lambda text: text[:12])  # fmt: skip
@pytest.mark.parametrize("read", [read_coco_annotations, lambda path: read_results(path, [1], [1])])
def test_json(tmp_path, text, read):
    (tmp_path / "a.json").write_text(text)
    expect_refusal(tmp_path / "a.json", read)


class Trap:
    """Makes a folder if it is unpickled, which fails the attempt."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints(tmp_path, zipped):
    """Few bytes that claim huge tensors, or 100,000 classes whose shapes are all right; code at each place; a bomb."""
    path, info = tmp_path / "a.pth", CheckpointInfo(config=voc, class_names=("a", "b"), width=1 / 16)
    save_checkpoint(path, info.build("train").eval(), info)
    contents = torch.load(path, weights_only=True)

    def refused(data, *words):
        path.write_bytes(data)
        expect_refusal(path, load_network, *words)

    def with_weight(tensor):
        return stored({**contents, "state_dict": {**contents["state_dict"], "vgg.0.weight": tensor}}, zipped)

    # Claimed in a tensor's size alone, and in the size of its storage, too.
    refused(with_weight(torch.zeros(1).expand(2**40)), "claims more weights than the file holds")
    data, claim = with_weight(torch.zeros(70_001)), (b"J" + struct.pack("<i", 70_001), b"\x8a\x06" + bytes(5) + b"\1")
    data = repacked(data, lambda _, content: content.replace(*claim)) if zipped else data.replace(*claim)
    assert claim[1] in data
    refused(data)
    info = replace(info, class_names=tuple(f"class {i}" for i in range(100_000)))
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in info.build().state_dict().items()}
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    data = stored({**contents, "class_names": list(info.class_names), "state_dict": state}, zipped)
    refused(data, "claims more weights than the file holds")
    for place in contents:
        refused(stored({**contents, place: Trap()}, zipped), "code")
    refused(pickle.dumps(Trap()), "code")
    bomb = repacked(stored(contents), lambda name, _: bytes(2**26 if name.endswith("/0") else 9), zipfile.ZIP_DEFLATED)
    refused(bomb, "would unpack to")


def tar_with(kind):
    """Return a tar of a file, and of a link to it or a device."""
    return make_tar({"real": b"x"})[:1024] + make_tar({"link": b""}, type=kind, linkname="real")


def sparse_tar():
    """Return a tar of a sparse file of 8 GB, of which it holds nothing."""
    member = tarfile.TarInfo("a")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495], header[148:156] = b"77777777777\0", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize("make", [
    lambda: make_zip({"a": bytes(101 * 2**20)}, zipfile.ZIP_DEFLATED), sparse_tar,
    lambda: gzip.compress(make_tar({"a": b""})),  # a header in it may claim a name of any length
    *(partial(tar_with, kind) for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)),
])  # fmt: skip
def test_archives(tmp_path, make):
    """Links inside the folder, too: one onto another leads outside."""
    (tmp_path / "a").write_bytes(make())
    expect_refusal(tmp_path / "a", lambda path: unpack(path, tmp_path / "room"))
    assert {path.name for path in tmp_path.rglob("*") if not path.is_dir()} <= {"a", "real"}


def test_damaged_archives_write_nothing_outside(tmp_path, attack):
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, 0o120777 << 16  # a symbolic link
    seeds = [make_zip({link: b"..", "link/b": b"x" * 99}), make_zip({"a/b": b"x" * 99, "c": b""})]
    seeds += [make_tar({"a": b"x", "b/c": b""}), make_tar({"a": b""}, type=b"5")]
    tokens = [b"../x", b"/tmp/x", b"\0", b"PK\x01\x02", b"PK\x03\x04", b"ustar", b"0", b"2", b"L", b"x", b"\xff" * 4]

    def read(path):
        unpack(path, tmp_path / "room")
        found = {path for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()}
        assert all(path == each or (tmp_path / "room") in each.parents and not each.is_symlink() for each in found)

    attack("archive", tmp_path / "a.archive", partial(mutate_bytes, seeds=seeds, tokens=tokens), read)
