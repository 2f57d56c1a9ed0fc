"""Frames in planes: their colours are those that ffmpeg shows."""

import cv2
import numpy as np
import pytest
from inference.planar import SHARES, PlanarFrame, shrink, to_rgb, to_yuv
from media import decode, ffmpeg

from data.transforms import resize


def random_frame(size, matrix="bt601"):
    """A smooth picture with moderate colours."""
    random = np.random.RandomState(0)
    frame = PlanarFrame(size, matrix)
    for plane, low, high in ((frame.y, 60, 200), (frame.u, 108, 148), (frame.v, 108, 148)):
        plane[...] = cv2.resize(random.randint(low, high, (9, 12)).astype(np.uint8), plane.shape[::-1])
    return frame


def test_the_planes_are_views_of_the_data_in_ffmpegs_order():
    frame = PlanarFrame((5, 3), "bt601")
    frame.data[:] = np.arange(5 * 3 + 2 * 3 * 2)
    assert frame.shape == (3, 5, 3)
    assert frame.size == (5, 3)
    assert frame.nbytes == 27
    assert frame.y.tolist() == np.arange(15).reshape(3, 5).tolist()
    assert frame.u.tolist() == [[15, 16, 17], [18, 19, 20]]
    assert frame.v.tolist() == [[21, 22, 23], [24, 25, 26]]


# From tables of the standards: colour bars in 8 bits, limited range.
@pytest.mark.parametrize(
    ("matrix", "colour", "yuv"),
    [
        ("bt601", (255, 255, 255), (235, 128, 128)),
        ("bt601", (0, 0, 0), (16, 128, 128)),
        ("bt601", (255, 0, 0), (81, 90, 240)),
        ("bt601", (0, 255, 0), (145, 54, 34)),
        ("bt601", (0, 0, 255), (41, 240, 110)),
        ("bt709", (255, 0, 0), (63, 102, 240)),
        ("bt709", (0, 255, 0), (173, 42, 26)),
        ("bt709", (0, 0, 255), (32, 240, 118)),
    ],
)
def test_colours_have_the_codes_of_the_standards(matrix, colour, yuv):
    np.testing.assert_allclose(to_yuv(matrix) @ [*colour, 1], yuv, atol=0.6)
    np.testing.assert_allclose(to_rgb(matrix) @ [*yuv, 1], colour, atol=1.5)


@pytest.mark.parametrize("matrix", SHARES)
def test_rgb_is_what_ffmpeg_shows(tmp_path, matrix):
    """On flat patches, where it doesn't matter how colours are interpolated."""
    frame = PlanarFrame((128, 96), matrix)
    random = np.random.RandomState(0)
    for plane, low, high in ((frame.y, 60, 200), (frame.u, 100, 156), (frame.v, 100, 156)):
        patch = plane.shape[0] // 6
        plane[...] = random.randint(low, high, (6, 8)).repeat(patch, axis=0).repeat(patch, axis=1)
    (tmp_path / "frame.yuv").write_bytes(frame.data)
    raw = ["-f", "rawvideo", "-pixel_format", "yuv420p", "-video_size", "128x96"]
    convert = f"scale=flags=bicubic+full_chroma_int+accurate_rnd:in_color_matrix={matrix}:in_range=tv,format=rgb24"
    rgb = ffmpeg(*raw, "-i", tmp_path / "frame.yuv", "-vf", convert, "-f", "rawvideo", "-")
    middles = np.s_[8::16, 8::16]
    shown = np.frombuffer(rgb, np.uint8).reshape(96, 128, 3)[middles].astype(int)
    assert np.abs(frame.rgb()[middles] - shown).max() <= 1
    other = PlanarFrame(frame.size, "bt601" if matrix in ("bt709", "bt2020", "smpte240m") else "bt709")
    other.data[:] = frame.data
    assert np.abs(other.rgb()[middles] - shown).max() > 3  # the matrix does matter


@pytest.mark.parametrize("size", [(640, 360), (300, 300), (77, 131), (1279, 721)])
def test_the_networks_picture_is_the_resized_rgb(size):
    frame = random_frame(size)
    small = frame.rgb(150)
    assert small.shape == (150, 150, 3)
    assert small.dtype == np.uint8
    difference = np.abs(small.astype(int) - resize(frame.rgb(), 150))
    assert difference.mean() < 0.7
    assert difference.max() <= 4


@pytest.mark.parametrize("shape", [(1080, 1920), (2160, 3840), (721, 1279), (601, 5000), (432, 768), (300, 900)])
def test_strong_reduction_averages_areas(shape):
    """As resize does, on noise too, where any pixel left out would show."""
    plane = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    plane[: shape[0] // 2] //= 4
    expected = cv2.resize(plane, (300, 300), interpolation=cv2.INTER_AREA).astype(int)
    difference = np.abs(shrink(plane, 300) - expected)
    sparse = np.abs(cv2.resize(plane, (300, 300)) - expected)
    assert difference.mean() < 0.35 * sparse.mean()
    assert abs((shrink(plane, 300) - expected).mean()) < 0.6


def test_an_odd_frame_is_padded_by_its_edge():
    frame = random_frame((7, 5))
    padded = frame.padded()
    assert padded.shape == (6, 8, 3)
    np.testing.assert_array_equal(padded.y[:5, :7], frame.y)
    np.testing.assert_array_equal(padded.y[5, :7], frame.y[4])
    np.testing.assert_array_equal(padded.y[:5, 7], frame.y[:, 6])
    np.testing.assert_array_equal(padded.u, frame.u)
    np.testing.assert_array_equal(padded.v, frame.v)


def test_an_odd_frame_in_rgb(tmp_path):
    """ffmpeg has the same idea of where the planes of an odd frame begin."""
    frame = random_frame((33, 25))
    (tmp_path / "frame.yuv").write_bytes(frame.data)
    raw = ["-f", "rawvideo", "-pixel_format", "yuv420p", "-video_size", "33x25"]
    ffmpeg(*raw, "-i", tmp_path / "frame.yuv", "-c:v", "ffv1", tmp_path / "frame.mkv")
    assert np.abs(frame.rgb() - decode(tmp_path / "frame.mkv", (33, 25))[0].astype(float)).mean() < 1.5
