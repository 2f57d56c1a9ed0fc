"""Drawing into planar frames: the same picture as in RGB, as far as 4:2:0 can show it."""

import numpy as np
import pytest
from inference.canvas import PlanarCanvas, RGBCanvas, colour_in_yuv, frame_sides
from inference.planar import PlanarFrame, to_yuv

from inference import Detections
from inference.drawing import class_colour, draw_detections, label_patch

GREY = 126, 128, 128  # brightness 128 in RGB
RED = 255, 56, 56


def grey(size, matrix="bt601"):
    frame = PlanarFrame(size, matrix)
    frame.y[...], frame.u[...], frame.v[...] = GREY
    return frame


def frame_mask(shape, x1, y1, x2, y2, line):
    """Where a frame between these corners lies, the last ones not included."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    hole = (x >= x1 + line) & (x < x2 - line) & (y >= y1 + line) & (y < y2 - line)
    return inside & ~hole


@pytest.mark.parametrize(
    "corners", [(3, 4, 20, 18), (-2, -2, 40, 40), (0, 0, 5, 24), (10, 10, 11, 11), (28, 2, 33, 30)]
)
@pytest.mark.parametrize("line", [1, 3, 8])
@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 3)])
def test_a_frame_and_nothing_else(corners, line, shape):
    plane = np.zeros(shape, np.uint8)
    (sides,) = frame_sides(np.array([corners]), line, shape)
    for x1, y1, x2, y2 in sides:
        assert min(x1, y1, x2, y2) >= 0  # else a slice would count from the other end
        plane[y1:y2, x1:x2] = 7 if len(shape) == 2 else (7, 8, 9)
    mask = frame_mask(shape, *corners, line)
    if len(shape) == 2:
        np.testing.assert_array_equal(plane, 7 * mask)
    else:
        np.testing.assert_array_equal(plane, mask[..., None] * [7, 8, 9])


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_a_box_has_its_colour_in_all_planes(size, matrix):
    frame = grey(size, matrix)
    PlanarCanvas(frame, label_patch).boxes(np.array([[9, 13, 40, 30]]), [RED], 4)  # the box's pixels are 8..41, 12..31
    y, u, v = np.rint(to_yuv(matrix) @ [*RED, 1])
    colour = frame_mask(frame.y.shape, 8, 12, 42, 32, 4)
    hairlines = frame_mask(frame.y.shape, 7, 11, 43, 33, 6) & ~colour
    assert (frame.y[colour] == y).all()
    assert (frame.y[hairlines] == 16).all()
    assert (frame.y[~colour & ~hairlines] == GREY[0]).all()
    half = frame_mask(frame.u.shape, 4, 6, 21, 16, 2)
    for plane, value in ((frame.u, u), (frame.v, v)):
        assert (plane[half] == value).all()
        assert (plane[~half] == 128).all()


@pytest.mark.parametrize("place", [(10, 6), (11, 7), (0, 0)])
def test_a_label_is_the_same_as_in_rgb(place):
    frame, picture = grey((240, 60), "bt709"), np.full((60, 240, 3), 128, np.uint8)
    canvas, plain = PlanarCanvas(frame, label_patch), RGBCanvas(picture, label_patch)
    label = canvas.label("person 0.87", 22, RED)
    assert label.shape[0] % 2 == label.shape[1] % 2 == 0
    x, y = (side // 2 * 2 for side in place)
    high, wide = label.shape[:2]
    canvas.paste(label, (place[0], place[1], place[0] + wide, place[1] + high))
    patch = plain.label("person 0.87", 22, RED)
    plain.paste(patch, (x, y, x + patch.shape[1], y + patch.shape[0]))
    expected = picture @ to_yuv("bt709")[0, :3] + 16
    drawn = np.zeros(frame.y.shape, bool)
    drawn[y : y + patch.shape[0], x : x + patch.shape[1]] = True
    assert np.abs(frame.y - expected)[drawn].max() <= 1.01
    drawn[y : y + high, x : x + wide] = True
    assert (frame.y[~drawn] == GREY[0]).all()
    inside = np.s_[y // 2 : (y + high) // 2, x // 2 : (x + wide) // 2]
    _, u, v = colour_in_yuv(RED, "bt709")
    assert frame.v[inside].max() == v
    assert frame.u[inside].min() == u
    outside = np.ones(frame.v.shape, bool)
    outside[inside] = False
    assert (frame.v[outside] == 128).all()


def some_detections(number, width, height):
    random = np.random.RandomState(3)
    corners = np.sort(random.uniform(0, 1, (number, 2, 2)), axis=1).reshape(number, 4) * np.tile([width, height], 2)
    labels = random.randint(0, 20, number)
    scores = np.linspace(0.9, 0.5, number, dtype=np.float32)
    return Detections(corners.astype(np.float32), scores, labels, [f"class {label}" for label in labels])


def test_a_planar_frame_looks_like_an_rgb_one():
    width, height = 640, 360
    frame, picture = grey((width, height)), np.full((height, width, 3), 128, np.uint8)
    found = some_detections(6, width, height)
    even = Detections(found.boxes // 2 * 2, found.scores, found.labels, found.names)
    draw_detections(frame, even)
    draw_detections(picture, even)
    rgb = frame.rgb().astype(int)
    # Edges lie apart by a pixel at most, so a neighbour has the colour; colours at edges are blurred by half a pixel.
    shifts = [np.roll(rgb, (dy, dx), axis=(0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    nearest = np.min([np.abs(shift - picture).max(axis=-1) for shift in shifts], axis=0)
    assert (nearest < 60).mean() > 0.985
    assert (np.abs(picture.astype(int) - 128).max(axis=-1) > 60).mean() > 0.03  # there is something to see
    red, green, blue = class_colour(int(found.labels[0]))
    x = int(even.boxes[0, 0])
    middle = int(even.boxes[0, [1, 3]].mean())
    np.testing.assert_allclose(rgb[middle, x], [red, green, blue], atol=40)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 200), (200, 3), (21, 20), (65, 49), (322, 182)])
def test_any_size(size):
    width, height = size
    frame = grey(size)
    before = frame.data.copy()
    draw_detections(frame, some_detections(5, width, height))
    assert (frame.data != before).any()


def test_nothing_found_changes_nothing():
    frame = grey((64, 48))
    before = frame.data.copy()
    draw_detections(frame, some_detections(0, 64, 48))
    np.testing.assert_array_equal(frame.data, before)
