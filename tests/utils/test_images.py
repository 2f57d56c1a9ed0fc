"""Images: read from any file that claims to be one, and written."""

import os
import tracemalloc

import cv2
import numpy as np
import pytest
from checks import refused
from PIL import ExifTags, Image

from utils.images import IMAGE_SUFFIXES, decode_image, is_image, read_bgr, read_image, write_image


@pytest.fixture
def image():
    """A color gradient: smooth, so that JPEG changes it little."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 4, y * 5, 255 - x * 3], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "Grüße mit Lücke.BMP", "-dash.tiff", "日本.PNG", "a%d.ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path, image, name):
    write_image(tmp_path / name, image)
    np.testing.assert_array_equal(read_image(tmp_path / name), image)
    np.testing.assert_array_equal(read_bgr(str(tmp_path / name)), image[..., ::-1])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".gif"])
def test_other_formats_come_close(tmp_path, image, suffix):
    path = tmp_path / f"a{suffix.upper()}"
    if suffix == ".gif":  # OpenCV may lack it; 256 colors
        Image.fromarray(image).save(path)
    else:
        write_image(path, image)
    assert np.abs(read_image(path).astype(int) - image).mean() < (8 if suffix == ".gif" else 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4)])
def test_grayscale_alpha_and_16_bit_images_become_rgb(tmp_path, shape, dtype):
    highest = np.iinfo(dtype).max
    pixels = (np.random.RandomState(0).rand(*shape) * highest).astype(dtype)
    decoded = decode_image(cv2.imencode(".png", pixels)[1].tobytes())
    assert (decoded.shape, decoded.dtype) == ((20, 30, 3), np.uint8)
    in_8_bits = pixels / highest * 255
    expected = in_8_bits[..., :3] if len(shape) == 3 else np.repeat(in_8_bits[..., None], 3, axis=2)
    assert abs(decoded - expected).max() <= 1


def test_exif_orientation_is_applied(tmp_path, image):
    """A JPEG with the EXIF tag "turn right"."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(image).save(tmp_path / "a.jpg")
    Image.fromarray(image).save(tmp_path / "b.jpg", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), np.rot90(read_image(tmp_path / "a.jpg"), -1))


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(("content", "words"), [
    pytest.param(None, "not a regular file", marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")),
    (b"", "empty"), (b"not an image", "not an image"), (PNG + bytes(40), "damaged"),
    (b"\xff\xd8\xff\xe0" + bytes(20), "damaged"), (b"\xff\xd8" + b"\xff\xda" * 65, "65 scans"),
    (PNG + b"\xff\xff\xff\xf0zTXt" + bytes(40), "a chunk is larger than the file"),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_unreadable_images_are_named(tmp_path, content, words):
    """For missing files see test_voc0712.py."""
    path = tmp_path / "bad.jpg"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    for read in (read_image, read_bgr):
        assert refused(words, read, path).startswith(f"{path}: ")


def test_the_video_behind_a_phones_photo_is_ignored(tmp_path, image):
    """It contains some 120 markers of scans by chance."""
    Image.fromarray(image).save(tmp_path / "a.jpg")
    video = np.random.default_rng(0).bytes(2**23)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + video)
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), read_image(tmp_path / "a.jpg"))


def test_an_image_is_in_memory_only_once(tmp_path):
    """A second copy of the largest images would take half a gigabyte."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((1000, 1000, 3), np.uint8))
    tracemalloc.start()
    image = read_image(tmp_path / "a.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert image.nbytes == 3_000_000 <= peak < 4_000_000


def test_what_cannot_be_written_is_named(tmp_path, image):
    for path in (tmp_path / "nowhere" / "a.png", tmp_path / "a.xyz", tmp_path / "png"):
        assert refused("", write_image, path, image).startswith(f"{path}: ")
        assert not is_image(path) or path.suffix == ".png"
    assert list(tmp_path.iterdir()) == []
