"""Preprocessing: from an image to the network's input, the same in training, evaluation and detection."""

from functools import lru_cache

import cv2
import numpy as np
import torch
from torch.nn import functional

from .config import RGB_MEANS


def resize(image, size):
    """Resize an image to the network's square input. The aspect ratio is not kept, as in the paper.

    Bilinear, as in ssd.pytorch, except that strong reductions average areas.

    Args:
        image: uint8 or float32 [H, W, 3].

    Returns:
        [size, size, 3] of the same dtype.
    """
    interpolation = cv2.INTER_AREA if averages_areas(*image.shape[:2], size) else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=interpolation)


def resize_on_device(image, size):
    """Resize a uint8 tensor [H, W, 3] as `resize` does, but on its device and sync-free: uint8 [size, size, 3].

    Values may differ by 1.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    x = image.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)  # [3, H, W]
    if averages_areas(height, width, size):
        rows, columns = (_area_weights(length, size, x.device) for length in (height, width))
        x = rows @ (x @ columns.T)
    else:
        x = functional.interpolate(x[None], (size, size), mode="bilinear")[0]
    return x.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def averages_areas(height, width, size):
    """Return True if bilinear sampling would skip pixels in both directions, or many pixels in one direction.

    OpenCV averages areas only if both sides shrink. For a 300x300 input, this is False for VOC's images (at most 500
    pixels), True for COCO's (640 pixels) only if they are nearly square, and True for a video of 768x432.
    """
    shorter, longer = sorted((height, width))
    return shorter > 2 * size or (longer > 2.5 * size and shorter >= size)


def _area_weights(length, size, device):
    """Return the weights that average `length` pixels to `size` pixels in one direction: float32 [size, length]."""
    scale = length / size
    old = torch.arange(length, device=device) + 0.5  # centers
    new = (torch.arange(size, device=device)[:, None] + 0.5) * scale
    return ((1 + scale) / 2 - (old - new).abs()).clamp(0, 1) / scale


def to_input(images, channel_order="RGB", dtype=torch.float32, memory_format=torch.channels_last):
    """Turn resized images into the network's input, on their device.

    Args:
        images: uint8 RGB [B, size, size, 3].
        channel_order: "RGB" or "BGR", as the checkpoint expects it.
        dtype, memory_format: of the result.

    Returns:
        [B, 3, size, size]: values in 0..255 minus the mean (123, 117, 104).
    """
    x = images.permute(0, 3, 1, 2)  # a channels_last view
    x = x.float() - _means_on(x.device)
    if channel_order == "BGR":
        x = x.flip(1)
    return x.to(dtype).contiguous(memory_format=memory_format)


@lru_cache(maxsize=8)
def _means_on(device):
    """Return the mean as float32 [1, 3, 1, 1]. Cached, because copying it to a GPU synchronizes."""
    with torch.inference_mode(False):  # the cached tensor is also used outside of inference mode
        return torch.tensor(RGB_MEANS, dtype=torch.float32, device=device).view(1, 3, 1, 1)


def base_transform(image, size, mean):
    """Resize uint8 [H, W, 3] bilinearly to `size` and subtract the mean: float32 [size, size, 3]."""
    return cv2.resize(image, (size, size)).astype(np.float32) - np.array(mean, dtype=np.float32)


class BaseTransform:
    """The preprocessing of ssd.pytorch, bit-identical: resize bilinearly at every size, and subtract the mean.

    Args:
        size: side of the input in pixels.
        mean: mean of each channel, in the channel order of the images.
    """

    def __init__(self, size, mean):
        self.size = size
        self.mean = np.array(mean, dtype=np.float32)

    def __call__(self, image, boxes=None, labels=None):
        """Return (float32 [size, size, 3], boxes, labels) of a uint8 image [H, W, 3]; boxes and labels unchanged."""
        return base_transform(image, self.size, self.mean), boxes, labels


def detection_collate(batch):
    """Stack samples (image, target, ...): tensor [B, 3, H, W] and a list of B float32 tensors [objects, columns].

    A target without objects becomes [0, 5].
    """
    targets = [torch.as_tensor(np.asarray(sample[1]), dtype=torch.float32, device="cpu") for sample in batch]
    targets = [target.reshape(0, 5) if target.shape == (0,) else target for target in targets]
    return torch.stack([sample[0] for sample in batch]), targets
