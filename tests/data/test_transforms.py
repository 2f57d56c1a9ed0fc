"""From a picture to the network's input."""

import cv2
import numpy as np
import pytest
import torch

from data import BaseTransform, detection_collate
from data.transforms import resize, to_input


def picture(width, height, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (40, 30), (300, 300), (640, 360)])
def test_base_transform_is_cv2_resize_minus_the_mean(size):
    frame = picture(*size)
    boxes, labels = object(), object()
    out, same_boxes, same_labels = BaseTransform(300, (104, 117, 123))(frame, boxes, labels)
    expected = cv2.resize(frame, (300, 300)).astype(np.float32) - np.array([104, 117, 123], np.float32)
    assert out.dtype == np.float32
    assert np.array_equal(out, expected)
    assert same_boxes is boxes
    assert same_labels is labels


def test_base_transform_alone_on_a_frame():
    """As a course script calls it."""
    out = BaseTransform(300, (104, 117, 123))(np.full((10, 20, 3), 130, np.uint8))
    assert out[0].shape == (300, 300, 3)
    assert out[0][0, 0].tolist() == [26, 13, 7]
    assert out[1:] == (None, None)


def test_frames_much_larger_than_the_input_are_averaged():
    """Bilinear sampling would look at 4 of 16 pixels."""
    frame = picture(1200, 1200)
    blocks = frame.reshape(300, 4, 300, 4, 3).mean(axis=(1, 3))
    assert abs(resize(frame, 300) - blocks).max() <= 0.51


@pytest.mark.parametrize(("width", "height"), [(700, 700), (768, 432), (1279, 301), (480, 854), (1000, 300)])
def test_no_pixel_is_left_out(width, height):
    frame = picture(width, height)
    for plain in (frame, frame.transpose(1, 0, 2)):
        changed = np.ascontiguousarray(plain).astype(np.float32)
        result = resize(changed, 300)
        assert abs(result.mean() - changed.mean()) < 0.05  # all count alike, whatever the noise
        np.testing.assert_array_equal(result, cv2.resize(changed, (300, 300), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_input(dtype):
    frames = torch.from_numpy(np.stack([picture(8, 8, 1), picture(8, 8, 2)]))
    for order, picked, mean in (("RGB", [0, 1, 2], (123, 117, 104)), ("BGR", [2, 1, 0], (104, 117, 123))):
        x = to_input(frames, order, dtype)
        assert x.dtype == dtype
        assert x.is_contiguous(memory_format=torch.channels_last)
        for channel in range(3):
            expected = frames[..., picked[channel]].float() - mean[channel]
            assert torch.equal(x[:, channel], expected.to(dtype))


def test_to_input_and_base_transform_agree():
    """A BGR frame through the lineage's preprocessing, and the same in RGB through the project's."""
    frame = picture(320, 240)
    lineage = BaseTransform(300, (104, 117, 123))(frame)[0][:, :, ::-1]
    own = to_input(torch.from_numpy(np.ascontiguousarray(resize(frame, 300)[:, :, ::-1]))[None])
    assert np.array_equal(own[0].permute(1, 2, 0).numpy(), lineage)


def test_collate():
    images = [torch.full((3, 4, 4), float(i)) for i in range(3)]
    targets = [np.array([[0.1, 0.2, 0.3, 0.4, 5]]), np.zeros((0, 5), np.float32), [[0, 0, 1, 1, 2], [0, 0, 1, 1, 3]]]
    stacked, out = detection_collate(list(zip(images, targets, strict=True)))
    assert torch.equal(stacked, torch.stack(images))
    assert [tuple(target.shape) for target in out] == [(1, 5), (0, 5), (2, 5)]
    assert all(isinstance(target, torch.Tensor) and target.dtype == torch.float32 for target in out)
    assert out[2][:, 4].tolist() == [2, 3]
