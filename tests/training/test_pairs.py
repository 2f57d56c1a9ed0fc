"""Two pictures side by side: pixels and boxes of both."""

import numpy as np
import pytest

from training.pairs import side_by_side


def picture(width, height, colour, box, label):
    """(image, target) with one object, a rectangle of 255 on a plain colour."""
    image = np.full((height, width, 3), colour, np.uint8)
    x1, y1, x2, y2 = (round(part * extent) for part, extent in zip(box, (width, height) * 2, strict=True))
    image[y1:y2, x1:x2] = 255
    return image, np.array([[*box, label]], np.float32)


@pytest.mark.parametrize(("width", "height"), [(200, 100), (50, 100), (400, 200), (60, 30)])
def test_boxes_lie_on_their_objects(width, height):
    left = picture(100, 100, 40, (0.1, 0.2, 0.5, 0.9), 3)
    right = picture(width, height, 90, (0.2, 0.1, 0.6, 0.8), 7)
    image, target = side_by_side(left, right)
    assert image.shape == (100, 100 + round(width * 100 / height), 3)
    assert target.dtype == np.float32 and target[:, 4].tolist() == [3, 7]
    assert (image[:, :100] == left[0]).all()
    soft = 1 + round(100 / height)  # interpolation blurs edges so far
    for x1, y1, x2, y2 in np.rint(target[:, :4] * (image.shape[1::-1] * 2)).astype(int):
        assert (image[y1 + soft : y2 - soft, x1 + soft : x2 - soft] == 255).all()
        rows, columns = (y1 - soft - 1, y2 + soft), (x1 - soft - 1, x2 + soft)
        around = [*(image[row, x1:x2] for row in rows), *(image[y1:y2, column] for column in columns)]
        assert all((side < 255).all() for side in around)


def test_inputs_are_left_alone():
    left, right = picture(100, 80, 40, (0.1, 0.2, 0.5, 0.9), 3), picture(60, 90, 90, (0.2, 0.1, 0.6, 0.8), 7)
    before = [array.copy() for array in (*left, *right)]
    image, target = side_by_side(left, right)
    image[...], target[...] = 0, 0
    assert all(np.array_equal(array, copy) for array, copy in zip((*left, *right), before, strict=True))


def test_pictures_without_objects():
    empty = np.zeros((0, 5), np.float32)
    image, target = side_by_side((np.zeros((30, 40, 3), np.uint8), empty), picture(20, 30, 9, (0.5, 0, 1, 1), 2))
    assert image.shape == (30, 60, 3)
    np.testing.assert_allclose(target, [[40 / 60 + 10 / 60, 0, 1, 1, 2]], rtol=1e-6)
    assert side_by_side((image, empty), (image, empty))[1].shape == (0, 5)


def test_a_sliver_keeps_a_pixel():
    empty = np.zeros((0, 5), np.float32)
    image, _ = side_by_side((np.zeros((10, 10, 3), np.uint8), empty), (np.zeros((500, 1, 3), np.uint8), empty))
    assert image.shape == (10, 11, 3)
