"""Two kinds of canvas to draw detections on, RGB arrays and planar frames: each can do boxes and labels."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from inference.planar import PlanarFrame, to_yuv

DARK = 16  # of the hairlines along a box, which set it off from any background


def canvas_of(frame, make_label):
    """A canvas on a frame (uint8 RGB [H, W, 3], contiguous, or a PlanarFrame).

    make_label: function (text, size, colour) that returns a label's picture, uint8 RGB [h, w, 3].
    """
    return (PlanarCanvas if isinstance(frame, PlanarFrame) else RGBCanvas)(frame, make_label)


class RGBCanvas:
    """Draws into an RGB array."""

    def __init__(self, frame, make_label):
        self.frame = frame
        self.shape = frame.shape
        self.label = make_label

    def boxes(self, corners, colours, line):
        """Frames of `line` pixels just inside of corners int [N, 4] (x1, y1, x2, y2: all four belong to the box),
        each over those before it."""
        dark = stripe((DARK, DARK, DARK), self.shape[1])
        rims = frame_sides(corners + (-1, -1, 2, 2), line + 2, self.shape)
        inner = frame_sides(corners + (0, 0, 1, 1), line, self.shape)
        for rim, sides, colour in zip(rims, inner, colours, strict=True):
            # Whole rows at once: repeating three bytes for each pixel takes several times as long.
            for rectangles, row in ((rim, dark), (sides, stripe(colour, self.shape[1]))):
                for x1, y1, x2, y2 in rectangles:
                    self.frame[y1:y2, x1:x2] = row[: x2 - x1]

    def paste(self, label, place):
        """A label at a place x1, y1, x2, y2 inside the picture."""
        x1, y1, x2, y2 = place
        self.frame[y1:y2, x1:x2] = label[: y2 - y1, : x2 - x1]


class PlanarCanvas:
    """Draws into a PlanarFrame, at even places: so a box has its colour up to its edges."""

    def __init__(self, frame, make_label):
        self.frame = frame
        self.shape = frame.shape
        self.label = lambda *what: planar_label(make_label, self.frame.matrix, *what)

    def boxes(self, corners, colours, line):
        """See RGBCanvas."""
        frame, line = self.frame, line + line % 2
        half = corners // 2 + (0, 0, 1, 1)
        rims = frame_sides(2 * half + (-1, -1, 1, 1), line + 2, frame.y.shape)
        inner = frame_sides(2 * half, line, frame.y.shape)
        coarse = frame_sides(half, line // 2, frame.u.shape)
        for rim, sides, half_sides, colour in zip(rims, inner, coarse, colours, strict=True):
            y, u, v = colour_in_yuv(colour, frame.matrix)
            fill(frame.y, rim, DARK)
            fill(frame.y, sides, y)
            fill(frame.u, half_sides, u)
            fill(frame.v, half_sides, v)

    def paste(self, label, place):
        """See RGBCanvas."""
        frame = self.frame
        height, width = place[3] - place[1], place[2] - place[0]
        x, y = place[0] // 2, place[1] // 2
        frame.y[2 * y : 2 * y + height, 2 * x : 2 * x + width] = label.y[:height, :width]
        height, width = (height + 1) // 2, (width + 1) // 2
        frame.u[y : y + height, x : x + width] = label.u[:height, :width]
        frame.v[y : y + height, x : x + width] = label.v[:height, :width]


def frame_sides(corners, line, shape):
    """The four sides of frames `line` pixels wide, each a rectangle, cut off at the picture's edges.

    Args:
        corners: int [N, 4], x1, y1 and x2, y2, which don't belong to the frame. shape: (height, width, ...).

    Returns:
        a list [N] of lists of four (x1, y1, x2, y2): top, bottom, left, right.
    """
    height, width = shape[:2]
    ends = np.array([width, height] * 2)
    outer = np.minimum(np.maximum(corners, 0), ends)
    inner = np.minimum(np.maximum(corners + (line, line, -line, -line), 0), ends)
    x1, y1, x2, y2 = outer.T
    left, top = np.minimum(inner[:, :2], outer[:, 2:]).T
    right, bottom = np.maximum(inner[:, 2:], outer[:, :2]).T
    sides = np.array([x1, y1, x2, top, x1, bottom, x2, y2, x1, y1, left, y2, right, y1, x2, y2])
    return sides.T.reshape(-1, 4, 4).tolist()


def fill(plane, rectangles, value):
    """Set rectangles (x1, y1, x2, y2) of a plane [H, W] to a value."""
    for x1, y1, x2, y2 in rectangles:
        plane[y1:y2, x1:x2] = value


@lru_cache
def stripe(colour, width):
    """A row of pixels of one colour: uint8 [width, 3]."""
    return np.full((width, 3), colour, np.uint8)


@dataclass(frozen=True)
class PlanarLabel:
    """A label's picture in planes: y uint8 [h, w], both even, u and v [h / 2, w / 2]. shape: of its RGB form."""

    shape: tuple
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray


@lru_cache
def colour_in_yuv(colour, matrix):
    """(y, u, v) of a colour (red, green, blue), integers."""
    return tuple(np.rint(to_yuv(matrix) @ [*colour, 1]).astype(int).tolist())


@lru_cache(maxsize=1024)
def planar_label(make_label, matrix, text, size, colour):
    """A label's picture in planes: kept, since the same ones come every frame."""
    picture = make_label(text, size, colour)
    height, width = picture.shape[:2]
    picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    y, u, v = cv2.split(cv2.transform(picture, to_yuv(matrix)))
    half = width + width % 2 >> 1, height + height % 2 >> 1
    u, v = (cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (u, v))
    return PlanarLabel(picture.shape, y, u, v)
