"""Resizing, BaseTransform and batches. For the network's whole input see test_rows_are_those_of_the_network."""

import cv2
import numpy as np
import pytest
import torch

from data import BaseTransform, base_transform, detection_collate
from data.transforms import resize, resize_on_device

MEAN = (104, 117, 123)


def random_image(width, height):
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(500, 375), (40, 30), (300, 300), (640, 360), (1920, 1080)])
def test_base_transform_is_the_lineages_to_the_bit(size):
    """Bilinear at every size, also if the Detector would average areas."""
    image, boxes, labels = random_image(*size), object(), object()
    out, same_boxes, same_labels = BaseTransform(300, MEAN)(image, boxes, labels)
    expected = cv2.resize(image, (300, 300)).astype(np.float32)
    expected -= np.array(MEAN, np.float32)
    assert out.dtype == np.float32
    assert np.array_equal(out, expected) and np.array_equal(base_transform(image, 300, MEAN), expected)
    assert same_boxes is boxes and same_labels is labels
    assert BaseTransform(300, MEAN)(image)[1:] == (None, None)


@pytest.mark.parametrize(("interpolation", "sizes"), [
    (cv2.INTER_AREA, [(700, 700), (768, 432), (1279, 301), (480, 854), (1000, 300)]),
    (cv2.INTER_LINEAR, [(500, 375), (640, 360), (601, 600), (260, 520)]),
])  # fmt: skip
def test_only_strong_reductions_average_areas(interpolation, sizes):
    """Bilinear sampling would use 4 of 16 pixels."""
    for size in sizes:
        image = random_image(*size)
        expected = cv2.resize(image, (300, 300), interpolation=interpolation)
        np.testing.assert_array_equal(resize(image, 300), expected)


@pytest.mark.parametrize("side", [300, 512])
@pytest.mark.parametrize("size", [
    (300, 300), (500, 375), (333, 500), (601, 601), (768, 432), (1920, 1080), (1280, 301), (7, 900), (1, 1),
])  # fmt: skip
def test_resize_on_device_equals_resize(size, side):
    image = random_image(*size)
    resized = resize_on_device(torch.from_numpy(image), side)
    assert (resized.dtype, tuple(resized.shape)) == (torch.uint8, (side, side, 3))
    difference = np.abs(resized.numpy().astype(int) - resize(image, side))
    assert difference.max() <= 1
    assert difference.mean() < 0.2  # OpenCV rounds its weights to 11 bits


def test_collate():
    """Rows may have any length, and samples more than two members."""
    images = [torch.full((3, 4, 4), float(i)) for i in range(4)]
    targets = [np.array([[0.1, 0.2, 0.3, 0.4, 5]]), [], np.zeros((0, 5), "f4"), [[0, 0, 1, 1, 2], [0, 0, 1, 1, 3]]]
    stacked, out = detection_collate(list(zip(images, targets, strict=True)))
    assert torch.equal(stacked, torch.stack(images))
    assert [tuple(target.shape) for target in out] == [(1, 5), (0, 5), (0, 5), (2, 5)]
    assert all(isinstance(target, torch.Tensor) and target.dtype == torch.float32 for target in out)
    assert out[3][:, 4].tolist() == [2, 3]
    rows = [[0.1, 0.2, 0.3, 0.4, 5, 1], [0.5, 0.5, 0.6, 0.6, 2, 0]]
    _, (target,) = detection_collate([(torch.zeros(3, 4, 4), rows, 4, 4)])
    np.testing.assert_allclose(target, rows)
