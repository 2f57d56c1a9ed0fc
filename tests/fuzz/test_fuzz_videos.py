"""Damaged MP4 files, read to their end or for a number of frames: frames come, or the file is refused by name."""

import os
import struct

import pytest
from media import make_video
from mutation import mutate_bytes
from trials import attack

from inference.video import VideoReader

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="inputs are tried in a forked process")

BOXES = [
    b"moov",
    b"mdat",
    b"trak",
    b"stts",
    b"stsz",
    b"stco",
    b"stsd",
    b"avc1",
    b"avcC",
    b"elst",
    b"tkhd",
    b"mvhd",
    b"free",
]


def read(path):
    with VideoReader(path) as reader:
        width, height = reader.size
        for _, frame in zip(range(30), reader, strict=False):
            assert frame.shape == (height, width, 3)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    clip = make_video(folder / "a.mp4", frames=6)
    sound = make_video(folder / "b.mp4", frames=6, sound=0.3)
    first = make_video(folder / "c.mp4", frames=6, extra=("-movflags", "+faststart"))
    return [path.read_bytes() for path in (clip, sound, first)]


@pytest.mark.slow
def test_videos(seeds, tmp_path, count):
    def make(rng, folder):
        path = folder / "a.mp4"
        path.write_bytes(mutate_bytes(rng, seeds, BOXES))
        return path

    attack("video, MP4", make, read, count(40), tmp_path)


@pytest.mark.parametrize("claimed", [(16_000, 16_000), (60_000, 60_000), (65_500, 9)])
def test_pictures_that_claim_to_be_huge(tmp_path, claimed):
    """Motion JPEG: the size in the header of each picture is what a decoder makes room for."""
    width, height = claimed
    path = make_video(tmp_path / "a.avi", frames=3, extra=("-c:v", "mjpeg"))
    parts = path.read_bytes().split(b"\xff\xc0\x00\x11\x08")
    assert len(parts) >= 4
    size = struct.pack(">HH", height, width)
    path.write_bytes(parts[0] + b"".join(b"\xff\xc0\x00\x11\x08" + size + part[4:] for part in parts[1:]))
    attack("video, AVI with a lie", lambda *_: path, read, 1, tmp_path)


def lie(data, box, offset, *numbers):
    """A video with numbers of 32 bits written into a box, `offset` bytes after its name."""
    place = data.index(box) + 4 + offset
    written = struct.pack(f">{len(numbers)}I", *numbers)
    return data[:place] + written + data[place + len(written) :]


@pytest.mark.parametrize(
    ("name", "box", "offset", "numbers"),
    [
        ("size of the track", b"tkhd", 76, (60_000 << 16, 60_000 << 16)),
        ("size of the pictures", b"avc1", 24, ((60_000 << 16) + 60_000,)),
        ("number of samples", b"stsz", 8, (2**31 - 1,)),
        ("number of times", b"stts", 4, (2**31 - 1,)),
        ("number of chunks", b"stco", 4, (2**31 - 1,)),
        ("duration", b"mvhd", 16, (2**32 - 2,)),
        ("time scale", b"mvhd", 12, (0,)),
        ("time scale of the track", b"mdhd", 12, (0,)),
        ("duration of a sample", b"stts", 8, (6, 2**31 - 1)),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_video_whose_header_lies(seeds, tmp_path, name, box, offset, numbers):
    path = tmp_path / "lies.mp4"
    path.write_bytes(lie(seeds[0], box, offset, *numbers))
    attack("video, MP4 with a lie", lambda *_: path, read, 1, tmp_path)
