"""From a picture to the network's input: the one preprocessing of training, evaluation and detection."""

from functools import lru_cache

import cv2
import numpy as np
import torch

from .config import RGB_MEANS


def averages_areas(height, width, size):
    """Whether `resize` averages areas: where bilinear sampling would skip pixels in both directions, or many in one.

    OpenCV averages only where both sides shrink. VOC's pictures (500 pixels at most) are never reduced that far to 300,
    of COCO's (640) only those that are nearly square; a video of 768x432 is.
    """
    shorter, longer = sorted((height, width))
    return shorter > 2 * size or (longer > 2.5 * size and shorter >= size)


def resize(image, size):
    """Resize a picture to the network's square input, without keeping the aspect (as the paper does).

    Bilinear as in the reference, but for strong reductions (`averages_areas`).

    Args:
        image: uint8 or float32 [H, W, 3].
        size: side in pixels.

    Returns:
        [size, size, 3] of the same dtype.
    """
    way = cv2.INTER_AREA if averages_areas(*image.shape[:2], size) else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=way)


def resize_on_device(image, size):
    """Resize as `resize` does, on the image's device and without synchronizing; pixels differ by at most 1.

    Args:
        image: uint8 tensor [H, W, 3].
        size: side in pixels.

    Returns:
        uint8 tensor [size, size, 3]; the image itself if it has that size.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    by_area = averages_areas(height, width, size)
    rows, columns = (_resize_matrix(length, size, by_area, image.device) for length in (height, width))
    resized = rows @ image.permute(2, 0, 1).float() @ columns.T
    return resized.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)


def _resize_matrix(length, size, by_area, device):
    """Return the share of each of `length` pixels in each of `size` pixels: float32 [size, length]."""
    scale = length / size
    old = torch.arange(length, device=device, dtype=torch.float64)
    new = torch.arange(size, device=device, dtype=torch.float64)[:, None]
    if by_area:  # the mean of what a new pixel covers
        covered = torch.minimum(old + 1, (new + 1) * scale) - torch.maximum(old, new * scale)
        return (covered.clamp(min=0) / scale).float()
    center = ((new + 0.5) * scale - 0.5).clamp(0, length - 1)  # between the two old pixels nearest to its center
    return (1 - (old - center).abs()).clamp(min=0).float()


def to_input(pictures, channel_order="RGB", dtype=torch.float32, memory_format=torch.channels_last):
    """Turn resized pictures into the network's input, on the device that they lie on.

    Args:
        pictures: uint8 RGB [B, size, size, 3].
        channel_order: "RGB" or "BGR", as the checkpoint expects it.
        dtype, memory_format: of the result.

    Returns:
        [B, 3, size, size]: minus the mean (123, 117, 104), not divided by anything.
    """
    x = pictures.permute(0, 3, 1, 2)  # a view in channels_last already
    x = x.float() - _means_on(x.device)
    if channel_order == "BGR":
        x = x.flip(1)
    return x.to(dtype).contiguous(memory_format=memory_format)


@lru_cache(maxsize=8)
def _means_on(device):
    """The mean, float32 [1, 3, 1, 1]. Kept, as the program waits where it is brought to a GPU anew."""
    with torch.inference_mode(False):  # whoever asks first
        return torch.tensor(RGB_MEANS, dtype=torch.float32, device=device).view(1, 3, 1, 1)


class BaseTransform:
    """Resize and subtract the mean: the lineage's preprocessing of one picture.

    Args:
        size: side of the input in pixels.
        mean: subtracted from the channels in the order that the pictures come in.
    """

    def __init__(self, size, mean):
        self.size = size
        self.mean = np.array(mean, dtype=np.float32)

    def __call__(self, image, boxes=None, labels=None):
        """image: uint8 [H, W, 3] -> (float32 [size, size, 3], boxes, labels); the latter two pass through."""
        return resize(image, self.size).astype(np.float32) - self.mean, boxes, labels


def detection_collate(batch):
    """Stack a batch of (image, target): (tensor [B, 3, H, W], list of float32 tensors [objects, 5])."""
    images = torch.stack([image for image, _ in batch])
    return images, [torch.as_tensor(np.asarray(target), dtype=torch.float32).reshape(-1, 5) for _, target in batch]
