"""Damaged and hostile pictures, as detection, evaluation and training read them."""

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from mutation import mutate_bytes
from trials import attack

from utils.images import read_bgr, read_image

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="inputs are tried in a forked process")

# A segment that says: to be turned by 90 degrees.
EXIF = bytes.fromhex("ffe10022 457869660000 49492a0008000000 0100 1201 0300 01000000 06000000 00000000")
MARKERS = [bytes([0xFF, code]) for code in (0xC0, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xFE, 0xD0)]
CHUNKS = [
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"PLTE",
    b"tRNS",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"eXIf",
    b"iCCP",
    b"RIFF",
    b"VP8L",
    b"II*\0",
]


def encoded(suffix, shape=(40, 52, 3), dtype=np.uint8, settings=()):
    pixels = np.random.RandomState(0).randint(0, np.iinfo(dtype).max, shape).astype(dtype)
    pixels = cv2.GaussianBlur(pixels, (5, 5), 2)
    done, data = cv2.imencode(suffix, pixels, settings)
    assert done
    return data.tobytes()


SEEDS = {
    "JPEG": (
        ".jpg",
        [
            encoded(".jpg"),
            encoded(".jpg", settings=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)),
            encoded(".jpg", (40, 52)),
            encoded(".jpg")[:2] + EXIF + encoded(".jpg")[2:],
        ],
    ),
    "PNG": (".png", [encoded(".png"), encoded(".png", (40, 52, 4)), encoded(".png", (40, 52, 3), np.uint16)]),
    "WebP": (".webp", [encoded(".webp"), encoded(".webp", settings=(cv2.IMWRITE_WEBP_QUALITY, 101))]),
    "BMP, PPM": (".bmp", [encoded(".bmp"), encoded(".bmp", (40, 52)), encoded(".ppm")]),
    "TIFF": (".tif", [encoded(".tif"), encoded(".tif", (40, 52), np.uint16)]),
    "JPEG 2000": (".jp2", [encoded(".jp2")]),
}
SHORT = {"JPEG": 1200, "PNG": 1000, "WebP": 300, "BMP, PPM": 200, "TIFF": 400, "JPEG 2000": 200}


def with_right_checksums(data):
    """A PNG with each chunk's checksum put right, so that the decoder goes on to look at what is in it."""
    out, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + length]
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(out + data[place:])


@pytest.mark.parametrize("kind", SEEDS)
def test_pictures(kind, tmp_path, count):
    suffix, seeds = SEEDS[kind]

    def make(rng, folder):
        data = mutate_bytes(rng, seeds, MARKERS if kind == "JPEG" else CHUNKS)
        path = folder / f"a{suffix}"
        path.write_bytes(with_right_checksums(data) if kind == "PNG" and rng.random() < 0.7 else data)
        return path

    def read(path):
        picture = read_image(path)
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert np.array_equal(picture[:, :, ::-1], read_bgr(path))

    attack(f"picture, {kind}", make, read, count(SHORT[kind]), tmp_path)
