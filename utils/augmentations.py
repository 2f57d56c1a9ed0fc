"""SSD's data augmentation: photometric distortion, expansion, IoU-constrained crop, mirror.

The distributions are the paper's (section 2.2, "Data augmentation", and figure 6 for the expansion) as the reference
implementation draws them. The way there differs: the geometry is composed first and done as one warp from the
source picture to the network's input, and the colours are changed on that small result, only where the picture lies and
not on the filling. A picture expanded to sixteen times its area never exists.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

MEANS = (104, 117, 123)  # BGR, as OpenCV reads images
# Smallest overlap that a crop must have with an object; None: any crop in which an object's centre lies.
CROP_LIMITS = (0.1, 0.3, 0.5, 0.7, 0.9, None)
CROP_TRIES = 50


@dataclass(frozen=True)
class Window:
    """What part of the (expanded) picture is seen, in pixels of the source picture; may reach beyond it.

    Attributes:
        x, y: the corner.
        width, height: the extent.
        mirrored: left and right swapped.
    """

    x: float
    y: float
    width: float
    height: float
    mirrored: bool = False

    @property
    def corners(self):
        """float64 [4]: left, top, right, bottom."""
        return np.array([self.x, self.y, self.x + self.width, self.y + self.height])


class SSDAugmentation:
    """Augment one picture for training, and bring it to the network's input size.

    Args:
        size: side of the result in pixels.
        mean: fills what expansion adds, and is subtracted; in the channel order that the pictures come in.
        max_expand: largest ratio of the expanded side; 1 turns expansion off.
        channel_shuffle: probability of permuted channels (the reference's 0.5; the paper's own code: 0).
        subtract_mean: False gives uint8, for a mean subtracted later on the device.
        rng: numpy Generator; one of its own, made at the first call, unless given. May be replaced between calls.
        min_crop: smallest width and height of a crop, as a share of the picture's.
        frame_aspect: width:height of the frames that the network is meant for; half of the samples then show their
            part of the picture in a window of this shape, squeezed to the square input as the frames will be. None
            (the paper): never.
    """

    def __init__(
        self,
        size=300,
        mean=MEANS,
        max_expand=4.0,
        channel_shuffle=0.5,
        subtract_mean=True,
        rng=None,
        min_crop=0.3,
        frame_aspect=None,
    ):
        self.size = size
        self.mean = np.array(mean, dtype=np.float32)
        self.max_expand = max_expand
        self.channel_shuffle = channel_shuffle
        self.subtract_mean = subtract_mean
        self.rng = rng
        self.min_crop = min_crop
        self.frame_aspect = frame_aspect

    def __call__(self, image, boxes, labels):
        """Augment.

        Args:
            image: uint8 BGR [H, W, 3].
            boxes: corners [N, 4] as fractions of the picture; N may be 0.
            labels: [N].

        Returns:
            (image, boxes, labels): float32 BGR [size, size, 3] minus the mean (or uint8), boxes float32 [M, 4] as
            fractions of the result, labels [M]; M <= N, and at least 1 where N is.
        """
        self.rng = self.rng or fresh_generator()
        height, width = image.shape[:2]
        boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        window, kept = draw_window(self.rng, width, height, boxes, self.max_expand, self.min_crop, self.frame_aspect)
        result = warp(image, window, self.size, self.mean)
        inside = picture_region(window, width, height, self.size)
        result[inside] = distort(result[inside], self.rng, self.channel_shuffle)
        boxes = boxes_in_window(boxes[kept], window, width, height)
        if self.subtract_mean:
            result = cv2.subtract(result, (*map(float, self.mean), 0.0), dtype=cv2.CV_32F)
        return result, boxes, np.asarray(labels)[kept]


def fresh_generator():
    """A numpy Generator seeded by torch's, which a loader seeds anew for each worker and epoch."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


# --- geometry -------------------------------------------------------------------------------------------------------


def draw_window(rng, width, height, boxes, max_expand=4.0, min_crop=0.3, frame_aspect=None):
    """Draw expansion, crop, frame and mirror, composed to one window of the source picture.

    Args:
        rng: numpy Generator.
        width, height: of the picture in pixels.
        boxes: corners float [N, 4] as fractions.
        max_expand: largest side ratio of the expanded picture.
        min_crop: smallest share of its width and height that a crop has.
        frame_aspect: width:height that half of the windows are extended to, or None.

    Returns:
        (window, kept): a Window, and bool [N], the objects whose centre lies in it.
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
        kept |= centres_inside(pixels, window.corners[None])[0]
    mirrored = bool(rng.random() < 0.5)
    return Window(window.x, window.y, window.width, window.height, mirrored), kept


def draw_crop(rng, canvas, boxes, smallest=0.3):
    """Draw a crop of the canvas that keeps an object: one of whole / a limit on the overlap / no limit, equal odds.

    Width and height are `smallest` to 1 of the canvas', the aspect 0.5 to 2. After 50 vain tries the choice is made
    anew. A picture without objects is cropped without a condition.

    Args:
        rng: numpy Generator.
        canvas: the Window to cut from.
        boxes: corners [N, 4] in pixels of the source picture.
        smallest: share of the canvas' sides.

    Returns:
        (window, kept): a Window, and bool [N], the objects whose centre lies strictly inside.
    """
    while True:
        choice = rng.integers(len(CROP_LIMITS) + 1)
        if choice == len(CROP_LIMITS):
            return canvas, np.ones(len(boxes), dtype=bool)
        limit = CROP_LIMITS[choice]

        # All 50 tries at once; the first good one counts, as if they had been drawn one after the other.
        scale = rng.uniform(smallest, 1, (CROP_TRIES, 2))
        place = rng.random((CROP_TRIES, 2))
        extent = np.array([canvas.width, canvas.height])
        size = scale * extent
        corner = np.array([canvas.x, canvas.y]) + place * (extent - size)
        aspect = size[:, 1] / size[:, 0]
        good = (aspect >= 0.5) & (aspect <= 2)
        if len(boxes):
            crops = np.hstack([corner, corner + size])
            inside = centres_inside(boxes, crops)
            good &= inside.any(axis=1)
            if limit is not None:
                good &= (_overlaps(crops, boxes) >= limit).any(axis=1)
        if good.any():
            first = int(good.argmax())
            kept = inside[first] if len(boxes) else np.zeros(0, dtype=bool)
            return Window(*corner[first], *size[first]), kept


def draw_frame(rng, window, width, height, aspect):
    """Extend a window to the shape of a frame, at a place drawn at random, beyond the picture only where it must.

    Args:
        rng: numpy Generator.
        window: the Window that the frame holds.
        width, height: of the picture in pixels.
        aspect: width:height of the frame.

    Returns:
        the frame's Window: wider or higher than the given one, never smaller.
    """

    def place(start, extent, extended, picture):
        first = start - (extended - extent)
        drawn = rng.uniform(first, start)
        low, high = sorted((0.0, picture - extended))
        return min(max(min(max(drawn, low), high), first), start)

    extended_width = max(window.width, window.height * aspect)
    extended_height = max(window.height, window.width / aspect)
    x = place(window.x, window.width, extended_width, width)
    y = place(window.y, window.height, extended_height, height)
    return Window(x, y, extended_width, extended_height)


def centres_inside(boxes, crops):
    """Whether the centre of each box [N, 4] lies strictly inside each crop [T, 4], both as corners: bool [T, N]."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centre > crops[:, None, :2]) & (centre < crops[:, None, 2:])).all(axis=2)


def _overlaps(crops, boxes):
    """Jaccard overlap of each crop [T, 4] with each box [N, 4]: [T, N]."""
    sides = np.minimum(crops[:, None, 2:], boxes[:, 2:]) - np.maximum(crops[:, None, :2], boxes[:, :2])
    intersection = sides.clip(min=0).prod(axis=2)
    areas = (crops[:, 2:] - crops[:, :2]).prod(axis=1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return intersection / (areas - intersection)


def warp(image, window, size, fill):
    """Resample a window of a picture, as one affine warp.

    Args:
        image: uint8 [H, W, 3].
        window: what to see.
        size: side of the result.
        fill: colour beyond the picture, [3].

    Returns:
        uint8 [size, size, 3].
    """
    # OpenCV warps four channels in less than half the time of three. Only what the window sees gets its fourth.
    seen, left, top = _seen(image, window)
    seen = cv2.cvtColor(seen, cv2.COLOR_BGR2BGRA)
    # From a pixel's centre in the result to the source's pixel coordinates, in which centres are whole numbers.
    step_x, step_y = window.width / size, window.height / size
    start_x, start_y = window.x - left + step_x / 2 - 0.5, window.y - top + step_y / 2 - 0.5
    if window.mirrored:
        start_x, step_x = start_x + step_x * (size - 1), -step_x
    matrix = np.array([[step_x, 0, start_x], [0, step_y, start_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    colour = (*(float(value) for value in np.rint(fill)), 0.0)
    result = cv2.warpAffine(seen, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=colour)
    return cv2.cvtColor(result, cv2.COLOR_BGRA2BGR)


def _seen(image, window):
    """The part of a picture that a window sees, at least a pixel and one more around it; and its left and top."""
    height, width = image.shape[:2]
    left, top = (
        min(max(math.floor(start) - 2, 0), extent - 1) for start, extent in ((window.x, width), (window.y, height))
    )
    right, bottom = math.ceil(window.x + window.width) + 2, math.ceil(window.y + window.height) + 2
    return image[top : max(bottom, top + 1), left : max(right, left + 1)], left, top


def picture_region(window, width, height, size):
    """Where in the warped result the picture lies (the rest is filling): a pair of slices, rows and columns."""
    left, right = -window.x / window.width, (width - window.x) / window.width
    if window.mirrored:
        left, right = 1 - right, 1 - left
    top, bottom = -window.y / window.height, (height - window.y) / window.height
    edges = (round(min(max(edge, 0.0), 1.0) * size) for edge in (top, bottom, left, right))
    first_row, last_row, first_column, last_column = edges
    return slice(first_row, last_row), slice(first_column, last_column)


def boxes_in_window(boxes, window, width, height):
    """Boxes as fractions of a window, cut to it: corners [N, 4] as fractions of the picture -> float32 [N, 4]."""
    corner = np.array([window.x, window.y] * 2)
    extent = np.array([window.width, window.height] * 2)
    moved = ((boxes * np.array([width, height] * 2) - corner) / extent).clip(0, 1).astype(np.float32)
    if window.mirrored:
        moved[:, [0, 2]] = 1 - moved[:, [2, 0]]
    return moved


# --- colours --------------------------------------------------------------------------------------------------------


def distort(image, rng, channel_shuffle=0.5):
    """Photometric distortion, each step with probability 1/2: brightness, contrast, saturation, hue, channel order.

    Args:
        image: uint8 BGR [H, W, 3].
        rng: numpy Generator.
        channel_shuffle: probability of permuted channels.

    Returns:
        uint8 BGR [H, W, 3].
    """
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else 0.0  # of 360
    contrast_first = rng.random() < 0.5
    order = rng.permutation(3) if rng.random() < channel_shuffle else None
    if image.size == 0:
        return image

    if contrast_first:
        image = _scale_and_shift(image, contrast, contrast * brightness)
    else:
        image = _scale_and_shift(image, 1.0, brightness)
    image = _shift_hue(image, saturation, hue)
    if not contrast_first:
        image = _scale_and_shift(image, contrast, 0.0)
    return image if order is None else cv2.merge([cv2.extractChannel(image, int(channel)) for channel in order])


def _scale_and_shift(image, scale, shift):
    """scale * image + shift, saturated to 0..255."""
    if scale == 1 and shift == 0:
        return image
    return cv2.addWeighted(image, scale, image, 0, shift)


def _shift_hue(image, saturation, hue):
    """Scale the saturation and turn the hue (in degrees) of a uint8 BGR picture."""
    if saturation == 1 and hue == 0:
        return image
    # The "full" form keeps hue in 256 steps of 1.4 degrees (OpenCV's usual one has 180), so that uint8 wraps around.
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    if saturation != 1:
        cv2.insertChannel(cv2.convertScaleAbs(cv2.extractChannel(hsv, 1), alpha=saturation), hsv, 1)
    hsv[:, :, 0] += np.uint8(round(hue * 256 / 360) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
