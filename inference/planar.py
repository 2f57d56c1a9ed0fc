"""Frames as videos keep them: brightness in full, colour at half the size (YUV 4:2:0, 8 bits, limited range).

A frame that stays as it was decoded loses nothing, is half as large as in RGB, and spares two conversions of the whole
picture. Only what the network looks at becomes RGB, and that is small.
"""

from functools import lru_cache

import cv2
import numpy as np

from data.transforms import averages_areas, resize

# Shares of red and blue in the brightness, by the name of the matrix (ITU-R BT.601, BT.709, BT.2020; FCC; SMPTE 240M).
SHARES = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}


class PlanarFrame:
    """One frame.

    Args:
        size: (width, height) in pixels.
        matrix: how its colours are coded, a key of SHARES.
    Attributes:
        data: uint8 [bytes], the three planes one after the other, as ffmpeg's yuv420p; to be filled.
        y: uint8 [H, W], brightness, black 16 and white 235. u, v: uint8 [ceil(H / 2), ceil(W / 2)], grey is 128.
            All three are views of data.
    """

    def __init__(self, size, matrix):
        width, height = size
        half = (height + 1) // 2, (width + 1) // 2
        self.size = width, height
        self.matrix = matrix
        self.data = np.empty(width * height + 2 * half[0] * half[1], np.uint8)
        y, u, v = np.split(self.data, [width * height, width * height + half[0] * half[1]])
        self.y, self.u, self.v = y.reshape(height, width), u.reshape(half), v.reshape(half)

    @property
    def nbytes(self):
        """Size in bytes."""
        return self.data.nbytes

    @property
    def shape(self):
        """Shape of the same picture as an RGB array: (H, W, 3)."""
        return *self.y.shape, 3

    def rgb(self, side=None):
        """The picture as uint8 RGB: [H, W, 3], or resized as the network sees it [side, side, 3].

        The planes are resized before they are joined: the same as resizing RGB, but for rounding and for colours that
        are interpolated once instead of twice.
        """
        if side is None:
            y, colours = self.y, [cv2.resize(plane, self.size) for plane in (self.u, self.v)]
        else:
            y, *colours = (shrink(plane, side) for plane in (self.y, self.u, self.v))
        return cv2.transform(cv2.merge([y, *colours]), to_rgb(self.matrix))

    def padded(self):
        """This frame with even sides, the last row and column repeated."""
        width, height = self.size
        frame = PlanarFrame((width + width % 2, height + height % 2), self.matrix)
        frame.y[...] = np.pad(self.y, ((0, height % 2), (0, width % 2)), "edge")
        frame.u[...], frame.v[...] = self.u, self.v
        return frame


def shrink(plane, side):
    """Resize a plane to a square as data.transforms.resize does, uint8 [H, W] -> [side, side].

    Where that averages areas, halves come first: OpenCV has them in a quick form, and the rest is small.
    """
    if not averages_areas(*plane.shape, side):
        return resize(plane, side)
    while min(plane.shape) > 2 * side:
        height, width = plane.shape
        plane = cv2.resize(plane, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA)


@lru_cache
def to_yuv(matrix):
    """Affine map from RGB to (Y, U, V), 8 bits both: float64 [3, 4], to be applied to (r, g, b, 1)."""
    red, blue = SHARES[matrix]
    y = np.array([red, 1 - red - blue, blue])
    u = ([0, 0, 1] - y) / (2 * (1 - blue))
    v = ([1, 0, 0] - y) / (2 * (1 - red))
    scale = np.array([[219], [224], [224]]) / 255
    return np.hstack([np.stack([y, u, v]) * scale, [[16], [128], [128]]])


@lru_cache
def to_rgb(matrix):
    """Affine map from (Y, U, V) to RGB: float64 [3, 4], to be applied to (y, u, v, 1)."""
    forward = to_yuv(matrix)
    inverse = np.linalg.inv(forward[:, :3])
    return np.hstack([inverse, -inverse @ forward[:, 3:]])
