"""Pictures in and out."""

import tracemalloc

import cv2
import numpy as np
import pytest
from inference.pictures import list_pictures, targets_for

from utils.errors import InputError
from utils.images import is_image as is_picture
from utils.images import read_bgr, read_image, write_image


@pytest.fixture
def picture():
    """A colour gradient: smooth, so that JPEG changes it little."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 4, y * 5, 255 - x * 3], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "Grüße mit Lücke.BMP", "-dash.tiff", "日本.PNG", "a%d.ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path, picture, name):
    write_image(tmp_path / name, picture)
    np.testing.assert_array_equal(read_image(tmp_path / name), picture)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp"])
def test_lossy_formats_come_close(tmp_path, picture, suffix):
    write_image(tmp_path / f"a.{suffix}", picture)
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - picture).mean() < 4


def test_grey_transparent_and_16_bit_pictures_become_rgb(tmp_path, picture):
    grey = picture[:, :, 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([picture[:, :, ::-1], grey]))
    cv2.imwrite(str(tmp_path / "deep.png"), picture[:, :, ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), picture)
    np.testing.assert_allclose(read_image(tmp_path / "deep.png"), picture, atol=1)


def test_exif_orientation_is_followed(tmp_path, picture):
    """A JPEG with the EXIF tag "turn right" is read turned right."""
    write_image(tmp_path / "a.jpg", picture)
    data = (tmp_path / "a.jpg").read_bytes()
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    (tmp_path / "b.jpg").write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), np.rot90(read_image(tmp_path / "a.jpg"), -1))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0" + bytes(20), None])
def test_unreadable_pictures_are_named(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.jpg"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_bgr])
def test_a_name_that_no_file_can_have_is_named(read):
    with pytest.raises(InputError, match="bad"):
        read("bad\0.jpg")


def test_a_picture_is_in_memory_only_once(tmp_path):
    """Of the largest that are read, a second copy would take half a gigabyte."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((1000, 1000, 3), np.uint8))
    tracemalloc.start()
    try:
        assert read_image(tmp_path / "a.png").nbytes == 3_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 3_000_000 <= peak < 4_000_000


def test_unwritable_pictures_are_named(tmp_path, picture):
    with pytest.raises(InputError, match="nowhere"):
        write_image(tmp_path / "nowhere" / "a.png", picture)
    with pytest.raises(InputError, match=r"a\.xyz"):
        write_image(tmp_path / "a.xyz", picture)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_listed_by_name_without_our_own_output(tmp_path):
    for name in ("b.JPG", "a.png", "a_detections.png", ".hidden.png", "notes.txt", "c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_pictures(tmp_path)] == ["a.png", "b.JPG"]
    with pytest.raises(InputError, match="no picture"):
        list_pictures(tmp_path / "folder.png")


def test_suffixes():
    assert is_picture("a.JPeG")
    assert not is_picture("a.mp4")
    assert not is_picture("png")


def test_targets(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    one, two = folder / "a.png", folder / "b.jpg"
    assert targets_for([one, two], None, folder) == [folder / "a_detections.png", folder / "b_detections.jpg"]
    assert targets_for([one, two], tmp_path / "out", folder) == [tmp_path / "out" / "a.png", tmp_path / "out" / "b.jpg"]
    assert targets_for([one], tmp_path / "x.jpg") == [tmp_path / "x.jpg"]
    assert targets_for([one], tmp_path) == [tmp_path / "a.png"]


@pytest.mark.parametrize("output", ["in", "out.mp4", "out.png", "no/where", "file"])
def test_impossible_targets(tmp_path, output):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=output.split("/")[0]):
        targets_for([folder / "a.png", folder / "b.png"], tmp_path / output, folder)


@pytest.mark.parametrize("output", ["out.mp4", "in", "no/where.png"])
def test_impossible_targets_of_one_picture(tmp_path, output):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError):
        targets_for([tmp_path / "in" / "a.png"], tmp_path / output)
