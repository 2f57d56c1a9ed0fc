"""Damaged images and videos, as detection, evaluation and training read them."""

import struct
import zlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from media import make_video
from mutation import mutate_bytes
from trials import COUNTS, try_all

from inference.video import VideoReader
from utils.images import read_bgr, read_image

EXIF = bytes.fromhex("ffe10022 457869660000 49492a0008000000 0100 1201 0300 01000000 06000000 00000000")  # rotated
MARKERS = [bytes([0xFF, code]) for code in (0xC0, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xFE, 0xD0)]
CHUNKS = b"IHDR IDAT IEND PLTE tRNS acTL fcTL fdAT eXIf iCCP RIFF VP8L II*\0".split(b" ")
BOXES = b"moov mdat trak stts stsz stco stsd avc1 avcC elst tkhd mvhd free".split()


def encoded(suffix, shape=(40, 52, 3), dtype=np.uint8, settings=()):
    pixels = np.random.RandomState(0).randint(0, np.iinfo(dtype).max, shape).astype(dtype)
    return cv2.imencode(suffix, cv2.GaussianBlur(pixels, (5, 5), 2), settings)[1].tobytes()


JPEG = encoded(".jpg")
PROGRESSIVE = encoded(".jpg", settings=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2))
FORMATS = {
    "JPEG": [JPEG, PROGRESSIVE, encoded(".jpg", (40, 52)), JPEG[:2] + EXIF + JPEG[2:]],
    "PNG": [encoded(".png"), encoded(".png", (40, 52, 4)), encoded(".png", (40, 52, 3), np.uint16)],
    "WebP": [encoded(".webp"), encoded(".webp", settings=(cv2.IMWRITE_WEBP_QUALITY, 101))],
    "BMP and PPM": [encoded(".bmp"), encoded(".bmp", (40, 52)), encoded(".ppm")],
    "TIFF": [encoded(".tif"), encoded(".tif", (40, 52), np.uint16)],
    "JPEG 2000": [encoded(".jp2")],
}


def with_valid_checksums(png):
    """Correct the checksum of each chunk of a PNG, so that the decoder looks at the contents."""
    out, place = png[:8], 8
    while place + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, place)
        body = png[place + 4 : place + 8 + length]
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return out + png[place:]


def test_at_least_ten_thousand_hostile_files_are_read():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f'"{kind}"' in tests for kind in COUNTS)
    assert 10_000 <= sum(COUNTS.values()) <= 12_000


@pytest.mark.parametrize("name", FORMATS)
def test_images(name, tmp_path, attack):
    def make(rng):
        data = mutate_bytes(rng, FORMATS[name], MARKERS if name == "JPEG" else CHUNKS)
        return with_valid_checksums(data) if name == "PNG" and rng.random() < 0.7 else data

    def read(path):
        image = read_image(path)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert np.array_equal(image[:, :, ::-1], read_bgr(path))

    attack(name, tmp_path / "a.image", make, read)


def read_video(path):
    with VideoReader(path) as reader:
        width, height = reader.size
        for _, frame in zip(range(30), reader, strict=False):
            assert frame.shape == (height, width, 3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The bytes of three clips: plain, with sound, and with its header in front."""
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    settings = ({}, {"sound": 0.3}, {"extra": ("-movflags", "+faststart")})
    return [make_video(path, frames=6, **more).read_bytes() for more in settings]


def test_videos(clips, tmp_path, attack):
    attack("MP4", tmp_path / "a.mp4", partial(mutate_bytes, seeds=clips, tokens=BOXES), read_video)


def test_videos_whose_headers_lie(clips, tmp_path):
    """About the sizes of track and frames, numbers of samples and times, and the time scale."""
    most = 2**31 - 1
    for box, offset, *numbers in (
        (b"tkhd", 76, 60_000 << 16, 60_000 << 16), (b"avc1", 24, (60_000 << 16) + 60_000), (b"stsz", 8, most),
        (b"stts", 4, most), (b"mvhd", 12, 0),
    ):  # fmt: skip
        place, lie = clips[0].index(box) + 4 + offset, struct.pack(f">{len(numbers)}I", *numbers)
        (tmp_path / "a.mp4").write_bytes(clips[0][:place] + lie + clips[0][place + len(lie) :])
        try_all(f"MP4, {box} with a lie", tmp_path / "a.mp4", None, read_video)


@pytest.mark.parametrize("claimed", [(16_000, 16_000), (60_000, 60_000), (9, 65_500)])
def test_a_frame_that_claims_to_be_huge(tmp_path, claimed):
    """Motion JPEG: a decoder allocates the size in the header of each frame."""
    path = make_video(tmp_path / "a.avi", frames=3, extra=("-c:v", "mjpeg"))
    head, *frames = path.read_bytes().split(b"\xff\xc0\x00\x11\x08")
    assert len(frames) >= 3
    size = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", *claimed)
    path.write_bytes(head + b"".join(size + frame[4:] for frame in frames))
    try_all("AVI", path, None, read_video)
