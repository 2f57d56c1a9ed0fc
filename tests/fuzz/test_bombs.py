"""Small files that claim or unfold to huge ones, or that run code: refused by name, soon and in little memory."""

import contextlib
import importlib
import io
import json
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fileserver import serve
from metrics.coco_files import read_results
from training.facts import Memory
from trials import attack, expect_refusal, in_a_fork

from data import limits
from data.coco import read_coco_annotations
from data.config import voc
from data.voc0712 import read_annotation
from utils.download import unpack
from utils.errors import InputError
from utils.images import read_bgr, read_image
from weights.checkpoint import CheckpointInfo, load_network, read_file, save_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="bombs are opened in a forked process")

READERS = pytest.mark.parametrize("read", [read_image, read_bgr])


def written(path, data):
    path.write_bytes(data)
    return path


def png(width, height, pixels=b""):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def jpeg(width, height, *settings):
    """A small JPEG whose header claims another size."""
    _, data = cv2.imencode(".jpg", np.full((16, 16, 3), 99, np.uint8), settings)
    data = data.tobytes()
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def bmp(width, height):
    _, data = cv2.imencode(".bmp", np.zeros((16, 16, 3), np.uint8))
    data = bytearray(data.tobytes())
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


@READERS
@pytest.mark.parametrize("side", [60_000, 20_000])
@pytest.mark.parametrize("make", [png, jpeg, bmp])
def test_a_picture_s_header_of_a_huge_size(tmp_path, make, side, read):
    """20,000 x 20,000 is within what OpenCV allows by itself, and would take 1.2 GB before a copy is made."""
    expect_refusal("bomb", written(tmp_path / "a.png", make(side, side)), read, tmp_path)


@pytest.mark.parametrize("package", ["data", "inference"])
def test_the_limit_is_set_before_opencv_reads_it(tmp_path, monkeypatch, package):
    """Which OpenCV does once, when it is imported."""
    seen = []

    class Watch:
        def find_spec(self, name, *_):
            if name == "cv2":
                seen.append(os.environ.get(limits.PIXELS_VARIABLE))
                raise ImportError

    def import_anew(say):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("cv2", "data", "inference")]:
            del sys.modules[name]
        sys.meta_path.insert(0, Watch())
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
        say({"seen": seen})

    monkeypatch.delenv(limits.PIXELS_VARIABLE, raising=False)
    assert list(in_a_fork(import_anew, tmp_path)) == [{"seen": [str(limits.PIXELS)]}]


@pytest.mark.parametrize("progressive", [0, 1])
def test_the_largest_picture_s_header_costs_what_its_pixels_cost(tmp_path, progressive):
    side = int(limits.PIXELS**0.5) - 8
    path = written(tmp_path / "a.jpg", jpeg(side, side, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive))
    attack("bomb", lambda *_: path, read_image, 1, tmp_path)


@READERS
def test_a_progressive_picture_of_many_scans(tmp_path, read):
    """100 kB that a decoder works on for minutes: each scan goes over all the pixels."""
    _, data = cv2.imencode(".jpg", np.full((4000, 4000, 3), 99, np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    head, *scans = data.tobytes().split(b"\xff\xda")
    assert 5 < len(scans) < limits.MOST_SCANS
    attack("bomb", lambda *_: written(tmp_path / "a.jpg", data.tobytes()), read, 1, tmp_path)
    bomb = b"\xff\xda".join([head, scans[0], *scans[1:2] * 10_000, *scans[1:]])
    expect_refusal("bomb", written(tmp_path / "a.jpg", bomb), read, tmp_path)


def test_a_large_picture_says_how_to_lift_the_limit(tmp_path):
    path = written(tmp_path / "a.png", png(60_000, 60_000))
    with pytest.raises(InputError, match="set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS"):
        read_image(path)


@READERS
@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"acTL"])
def test_a_png_s_chunk_that_claims_to_be_huge(tmp_path, kind, read):
    """OpenCV makes room for it before it looks whether the file holds it."""
    data = png(52, 40)[:33] + struct.pack(">I", 0xE0000000) + kind + bytes(10_000)
    expect_refusal("bomb", written(tmp_path / "a.png", data), read, tmp_path)


@READERS
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a POSIX device")
def test_a_device_without_end(tmp_path, read):
    expect_refusal("bomb", Path("/dev/zero"), read, tmp_path)


@READERS
def test_a_pipe_that_nobody_writes_to(tmp_path, read):
    path = tmp_path / "a.jpg"
    os.mkfifo(path)
    expect_refusal("bomb", path, read, tmp_path)


OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"


@pytest.mark.parametrize(
    "entities",
    [
        '<!ENTITY a "ha">'
        + "".join(f'<!ENTITY {y} "{f"&{x};" * 10}">' for x, y in zip("abcdefghi", "bcdefghij", strict=True)),
        f'<!ENTITY j "{"x" * 200_000}">',
        '<!ENTITY j SYSTEM "file:///etc/passwd">',
        '<!ENTITY % p SYSTEM "file:///etc/passwd"> %p; <!ENTITY j "x">',
    ],
    ids=["billion laughs", "one long entity", "a file", "a parameter entity"],
)
def test_entities_in_an_annotation(tmp_path, entities):
    text = f"<!DOCTYPE a [{entities}]><annotation>{OBJECT.format('&j;' * 100)}</annotation>"
    expect_refusal("bomb", written(tmp_path / "a.xml", text.encode()), read_annotation, tmp_path)


def test_an_annotation_fetches_nothing(tmp_path):
    with serve(b'<!ENTITY j "cat">') as server:
        for doctype in (f'a SYSTEM "{server.address}"', f'a [<!ENTITY j SYSTEM "{server.address}">]'):
            text = f"<!DOCTYPE {doctype}><annotation>{OBJECT.format('cat')}</annotation>"
            path = written(tmp_path / "a.xml", text.encode())
            with contextlib.suppress(InputError):
                assert read_annotation(path).names == ("cat",)
        assert server.requests == []


def test_an_annotation_of_deep_nesting(tmp_path):
    path = written(
        tmp_path / "a.xml", b"<annotation>" + b"<object>" * 200_000 + b"</object>" * 200_000 + b"</annotation>"
    )
    expect_refusal("bomb", path, read_annotation, tmp_path)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"images":' * 200_000, "[" * 200_000 + "]" * 200_000, "9" * 100_000])
@pytest.mark.parametrize("read", [read_coco_annotations, lambda path: read_results(path, [1], [1])])
def test_json_of_deep_nesting(tmp_path, text, read):
    expect_refusal("bomb", written(tmp_path / "a.json", text.encode()), read, tmp_path)


def test_a_memory_of_the_check_of_deep_nesting_is_no_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_CACHE", str(tmp_path))
    path = Memory("root", "name").path
    written(path, b'{"format":' + b"[" * 200_000)
    assert Memory("root", "name").entries == {}


INFO = CheckpointInfo(config=voc, class_names=("a", "b"), width=1 / 16)


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    path = tmp_path_factory.mktemp("bombs") / "net.pth"
    save_checkpoint(path, INFO.build("train").eval(), INFO)
    return torch.load(path, weights_only=True)


def stored(contents, zipped=True):
    buffer = io.BytesIO()
    torch.save(contents, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_claims_a_tensor_of_2_to_the_40_elements(tmp_path, contents, zipped):
    """Once in its size alone, and once in the size of its storage, too."""
    long = torch.zeros(70_001)
    claim = b"J" + struct.pack("<i", 70_001), b"\x8a\x06" + (2**40).to_bytes(6, "little")
    plain = stored({**contents, "state_dict": {**contents["state_dict"], "vgg.0.weight": long}}, zipped)
    if zipped:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(plain)) as old, zipfile.ZipFile(buffer, "w") as new:
            for record in old.infolist():
                new.writestr(record.filename, old.read(record).replace(*claim))
        data = buffer.getvalue()
    else:
        data = plain.replace(*claim)
    assert data != plain
    expect_refusal("bomb", written(tmp_path / "claims.pth", data), load_network, tmp_path)
    state = {**contents["state_dict"], "vgg.0.weight": torch.zeros(1).expand(2**40)}
    data = stored({**contents, "state_dict": state}, zipped)
    expect_refusal("bomb", written(tmp_path / "repeats.pth", data), load_network, tmp_path)


def test_a_checkpoint_whose_few_numbers_would_fill_a_huge_network(tmp_path, contents):
    """100,000 classes: every shape is right, and each tensor of the heads repeats a single number."""
    info = CheckpointInfo(config=voc, class_names=tuple(f"class {i}" for i in range(100_000)), width=1 / 16)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in info.build().state_dict().items()}
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    path = written(tmp_path / "a.pth", stored({**contents, "class_names": list(info.class_names), "state_dict": state}))
    expect_refusal("bomb", path, load_network, tmp_path)
    with pytest.raises(InputError, match="claims more weights than the file holds"):
        load_network(path)


def test_a_checkpoint_that_is_a_zip_bomb(tmp_path, contents):
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(stored(contents))) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.infolist():
            content = bytes(64 * 2**20) if record.filename.endswith("data/0") else old.read(record)
            new.writestr(record.filename, content)
    path = written(tmp_path / "a.pth", buffer.getvalue())
    expect_refusal("bomb", path, load_network, tmp_path)
    with pytest.raises(InputError, match="would unpack to"):
        read_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code(tmp_path, contents, zipped):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    for place in contents:
        path = written(tmp_path / "a.pth", stored({**contents, place: Trap()}, zipped))
        with pytest.raises(InputError, match="code"):
            load_network(path)
        assert not (tmp_path / "sprung").exists()


def test_archives_that_are_bombs(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(101 * 2**20))
    room = tmp_path / "room"
    expect_refusal("bomb", path, lambda path: unpack(path, room), tmp_path)
    sparse = tarfile.TarInfo("a")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"00000000000\0"  # real size, put in below
    header[483:495] = b"17777777777\0"  # 2 GB, of which the archive holds nothing
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = written(tmp_path / "a.tar", bytes(header) + bytes(1024))
    expect_refusal("bomb", path, lambda path: unpack(path, room), tmp_path)
    assert [found for found in room.rglob("*") if found.is_file()] == []


def test_a_compressed_tar_is_refused(tmp_path):
    """A header in it may claim a name of any length, which would be unpacked into memory."""
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("a")
        member.size = 10
        archive.addfile(member, io.BytesIO(bytes(10)))
    expect_refusal("bomb", path, lambda path: unpack(path, tmp_path / "room"), tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_of_links_and_devices_is_refused(tmp_path, kind):
    """Links inside the folder, too: one onto another leads outside."""
    path, room = tmp_path / "a.tar", tmp_path / "room"
    with tarfile.open(path, "w") as archive:
        real = tarfile.TarInfo("real")
        archive.addfile(real)
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "real"
        archive.addfile(member)
    expect_refusal("bomb", path, lambda path: unpack(path, room), tmp_path)
    assert not (room / "link").exists()


def test_a_zip_never_makes_links(tmp_path):
    path, room = tmp_path / "a.zip", tmp_path / "room"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, str(tmp_path))
        archive.writestr("link/../link2", "x")
    with contextlib.suppress(InputError):
        unpack(path, room)
    assert not any(found.is_symlink() for found in room.rglob("*"))


def test_json_numbers_beyond_any_picture(tmp_path):
    entry = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 10**400, 1], "score": 1}
    path = written(tmp_path / "a.json", json.dumps([entry]).encode())
    expect_refusal("bomb", path, lambda path: read_results(path, [1], [1]), tmp_path)
