"""SSD's data augmentation: photometric distortion, expansion, IoU-constrained crop, mirror.

The distributions are the paper's (section 2.2, "Data augmentation", and section 3.6 for the expansion), with the
reference implementation's sizes of crops. The computation differs: expansion, crop and mirror are drawn first and
applied as one warp from the source image to the network's input. Colors are then distorted in the small result, inside
the image only. The expanded image, up to sixteen times as large, is never allocated.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

# Minimum IoU of a crop with an object; None: any crop that contains the center of an object.
CROP_LIMITS = (0.1, 0.3, 0.5, 0.7, 0.9, None)
CROP_TRIES = 50


@dataclass(frozen=True)
class Window:
    """The part of the (expanded) image that is shown, in pixels of the source image; it may reach beyond the image."""

    x: float  # left
    y: float  # top
    width: float
    height: float
    mirrored: bool = False  # left and right are swapped

    @property
    def corners(self):
        """float64 [4]: left, top, right, bottom."""
        return np.array([self.x, self.y, self.x + self.width, self.y + self.height])


class SSDAugmentation:
    """Augment an image for training and resize it to the network's input.

    Args:
        size: side of the result in pixels.
        mean: color of the area that expansion adds; also subtracted. In the channel order of the images.
        max_expand: maximum ratio of the expanded side; 1 turns expansion off.
        channel_shuffle: probability of permuted channels (0.5 in the reference, 0 in the paper's code).
        subtract_mean: if False, return uint8; the mean can then be subtracted later, on the device.
        rng: numpy Generator; may be replaced between calls. If None, each call seeds one from torch's generator, which
            a DataLoader seeds for each worker and epoch.
        min_crop: minimum width and height of a crop, as a fraction of the (expanded) image's.
        frame_aspect: width / height of the video frames to train for. Half of the crops are then extended to this
            aspect ratio and resized to the square input, as frames are in detection. None (the paper): off.
    """

    def __init__(
        self,
        size=300,
        mean=(104, 117, 123),
        max_expand=4.0,
        channel_shuffle=0.5,
        subtract_mean=True,
        rng=None,
        min_crop=0.3,
        frame_aspect=None,
    ):
        self.size = size
        self.mean = np.array(mean, dtype=np.float32)
        self.max_expand, self.min_crop, self.frame_aspect = max_expand, min_crop, frame_aspect
        self.channel_shuffle = channel_shuffle
        self.subtract_mean = subtract_mean
        self.rng = rng

    def __call__(self, image, boxes, labels):
        """Augment.

        Args:
            image: uint8 BGR [H, W, 3].
            boxes: corners [N, 4] as fractions of the image; N may be 0.
            labels: [N].

        Returns:
            (image, boxes, labels): float32 BGR [size, size, 3] minus the mean (or uint8), boxes float32 [M, 4] as
            fractions of the result, labels [M]; M <= N, and M >= 1 if N >= 1.
        """
        rng = self.rng or np.random.default_rng(int(torch.randint(2**63 - 1, (), device="cpu")))
        height, width = image.shape[:2]
        boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        window, kept = draw_window(rng, width, height, boxes, self.max_expand, self.min_crop, self.frame_aspect)
        result = warp(image, window, self.size, self.mean)
        inside = image_region(window, width, height, self.size)
        result[inside] = distort(result[inside], rng, self.channel_shuffle)
        boxes = boxes_in_window(boxes[kept], window, width, height)
        if self.subtract_mean:
            result = cv2.subtract(result, (*map(float, self.mean), 0.0), dtype=cv2.CV_32F)
        return result, boxes, np.asarray(labels)[kept]


def draw_window(rng, width, height, boxes, max_expand=4.0, min_crop=0.3, frame_aspect=None):
    """Draw expansion, crop, frame and mirror at random, and combine them into one window of the source image.

    Args:
        width, height: of the image in pixels.
        boxes: corners float [N, 4] as fractions.
        max_expand, min_crop, frame_aspect: see SSDAugmentation.

    Returns:
        (window, kept): a Window, and bool [N], True if the center of the object is inside.
    """
    canvas = Window(0.0, 0.0, float(width), float(height))
    if rng.random() < 0.5:
        ratio = rng.uniform(1, max_expand)
        left, top = rng.uniform(0, ratio - 1, 2)
        canvas = Window(-left * width, -top * height, ratio * width, ratio * height)
    pixels = boxes * np.array([width, height, width, height])
    window, kept = draw_crop(rng, canvas, pixels, min_crop)
    if frame_aspect is not None and rng.random() < 0.5:
        window = draw_frame(rng, window, width, height, frame_aspect)
        kept |= _centers_inside(pixels, window.corners[None])[0]
    mirrored = bool(rng.random() < 0.5)
    return Window(window.x, window.y, window.width, window.height, mirrored), kept


def draw_crop(rng, canvas, boxes, min_crop=0.3):
    """Draw a crop of the canvas that keeps an object.

    The whole canvas, each overlap limit, and no limit are equally likely. Width and height are `min_crop` to 1 times
    the canvas's, and the aspect ratio is 0.5 to 2. If 50 tries fail, the choice is drawn again. Without objects, any
    such crop is valid.

    Args:
        canvas: the Window to crop.
        boxes: corners [N, 4] in pixels of the source image.

    Returns:
        (window, kept): a Window, and bool [N], True if the center of the object is strictly inside.
    """
    while True:
        choice = rng.integers(len(CROP_LIMITS) + 1)
        if choice == len(CROP_LIMITS):
            return canvas, np.ones(len(boxes), dtype=bool)
        limit = CROP_LIMITS[choice]

        # Draw all tries at once and use the first good one, as if they were drawn one after the other.
        scale = rng.uniform(min_crop, 1, (CROP_TRIES, 2))
        place = rng.random((CROP_TRIES, 2))
        extent = np.array([canvas.width, canvas.height])
        size = scale * extent
        corner = np.array([canvas.x, canvas.y]) + place * (extent - size)
        aspect = size[:, 1] / size[:, 0]
        good = (aspect >= 0.5) & (aspect <= 2)
        if len(boxes):
            crops = np.hstack([corner, corner + size])
            inside = _centers_inside(boxes, crops)
            good &= inside.any(axis=1)
            if limit is not None:
                good &= (_overlaps(crops, boxes) >= limit).any(axis=1)
        if good.any():
            first = int(good.argmax())
            kept = inside[first] if len(boxes) else np.zeros(0, dtype=bool)
            return Window(*corner[first], *size[first]), kept


def draw_frame(rng, window, width, height, aspect):
    """Extend a Window to a frame's aspect ratio, at a random place; beyond the image only if necessary.

    width, height: of the image in pixels. aspect: width / height of the frame.
    """

    def place(start, extent, extended, image_extent):
        first = start - (extended - extent)
        drawn = rng.uniform(first, start)
        low, high = sorted((0.0, image_extent - extended))
        return min(max(min(max(drawn, low), high), first), start)

    extended_width = max(window.width, window.height * aspect)
    extended_height = max(window.height, window.width / aspect)
    x = place(window.x, window.width, extended_width, width)
    y = place(window.y, window.height, extended_height, height)
    return Window(x, y, extended_width, extended_height)


def _centers_inside(boxes, crops):
    """Return whether the center of each box [N, 4] is strictly inside each crop [T, 4], both corners: bool [T, N]."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((center > crops[:, None, :2]) & (center < crops[:, None, 2:])).all(axis=2)


def _overlaps(crops, boxes):
    """Return the IoU of each crop [T, 4] with each box [N, 4]: [T, N]. Three times as fast as torchvision's here."""
    sides = np.minimum(crops[:, None, 2:], boxes[:, 2:]) - np.maximum(crops[:, None, :2], boxes[:, :2])
    intersection = sides.clip(min=0).prod(axis=2)
    areas = (crops[:, 2:] - crops[:, :2]).prod(axis=1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return intersection / (areas - intersection)


def warp(image, window, size, fill):
    """Resample a window of an image in one affine warp.

    Args:
        image: uint8 [H, W, 3].
        window: the Window to show.
        fill: color beyond the image, [3].

    Returns:
        uint8 [size, size, 3].
    """
    # OpenCV warps four channels in less than half the time of three, so the shown part is converted. It has at least
    # one pixel, and a margin for the interpolation.
    height, width = image.shape[:2]
    left = min(max(math.floor(window.x) - 2, 0), width - 1)
    top = min(max(math.floor(window.y) - 2, 0), height - 1)
    right, bottom = math.ceil(window.x + window.width) + 2, math.ceil(window.y + window.height) + 2
    shown = cv2.cvtColor(image[top : max(bottom, top + 1), left : max(right, left + 1)], cv2.COLOR_BGR2BGRA)
    # Map pixel centers of the result to coordinates of the source; its pixel centers are integers.
    step_x, step_y = window.width / size, window.height / size
    start_x, start_y = window.x - left + step_x / 2 - 0.5, window.y - top + step_y / 2 - 0.5
    if window.mirrored:
        start_x, step_x = start_x + step_x * (size - 1), -step_x
    matrix = np.array([[step_x, 0, start_x], [0, step_y, start_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    color = (*(float(value) for value in np.rint(fill)), 0.0)
    result = cv2.warpAffine(shown, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=color)
    return cv2.cvtColor(result, cv2.COLOR_BGRA2BGR)


def image_region(window, width, height, size):
    """Return the part of the warped result that is inside the image, as slices of rows and columns."""
    left, right = -window.x / window.width, (width - window.x) / window.width
    if window.mirrored:
        left, right = 1 - right, 1 - left
    top, bottom = -window.y / window.height, (height - window.y) / window.height
    top, bottom, left, right = (round(min(max(edge, 0.0), 1.0) * size) for edge in (top, bottom, left, right))
    return slice(top, bottom), slice(left, right)


def boxes_in_window(boxes, window, width, height):
    """Convert boxes [N, 4] from fractions of the image to fractions of a window, clipped to it: float32 [N, 4]."""
    corner = np.array([window.x, window.y] * 2)
    extent = np.array([window.width, window.height] * 2)
    moved = ((boxes * np.array([width, height] * 2) - corner) / extent).clip(0, 1).astype(np.float32)
    if window.mirrored:
        moved[:, [0, 2]] = 1 - moved[:, [2, 0]]
    return moved


def distort(image, rng, channel_shuffle=0.5):
    """Change brightness, contrast, saturation and hue of a uint8 BGR image, each with probability 1/2.

    `channel_shuffle` is the probability of permuted channels. Returns uint8 BGR of the same shape.
    """
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else 0.0  # degrees
    contrast_first = rng.random() < 0.5
    order = rng.permutation(3) if rng.random() < channel_shuffle else None
    if image.size == 0:
        return image

    if contrast_first:
        image = _scale_and_shift(image, contrast, contrast * brightness)
    else:
        image = _scale_and_shift(image, 1.0, brightness)
    image = _change_hsv(image, saturation, hue)
    if not contrast_first:
        image = _scale_and_shift(image, contrast, 0.0)
    return image if order is None else cv2.merge([cv2.extractChannel(image, int(channel)) for channel in order])


def _scale_and_shift(image, scale, shift):
    """Return scale * image + shift, saturated to 0..255."""
    if scale == 1 and shift == 0:
        return image
    return cv2.addWeighted(image, scale, image, 0, shift)


def _change_hsv(image, saturation, hue):
    """Scale the saturation and shift the hue (in degrees) of a uint8 BGR image."""
    if saturation == 1 and hue == 0:
        return image
    # The "full" conversion has 256 steps of hue (OpenCV's usual one 180), so uint8 wraps around correctly.
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    if saturation != 1:
        cv2.insertChannel(cv2.convertScaleAbs(cv2.extractChannel(hsv, 1), alpha=saturation), hsv, 1)
    hsv[:, :, 0] += np.uint8(round(hue * 256 / 360) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
