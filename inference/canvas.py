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

    def box(self, corners, colour, line):
        """A frame of `line` pixels just inside of corners x1, y1, x2, y2 (all four belong to the box)."""
        x1, y1, x2, y2 = corners
        draw_frame(self.frame, (x1 - 1, y1 - 1, x2 + 2, y2 + 2), line + 2, (DARK, DARK, DARK))
        draw_frame(self.frame, (x1, y1, x2 + 1, y2 + 1), line, colour)

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

    def box(self, corners, colour, line):
        """See RGBCanvas."""
        frame, line = self.frame, line + line % 2
        y, u, v = colour_in_yuv(colour, frame.matrix)
        x1, y1, x2, y2 = (side // 2 for side in corners)
        half = x1, y1, x2 + 1, y2 + 1
        x1, y1, x2, y2 = (2 * side for side in half)
        draw_frame(frame.y, (x1 - 1, y1 - 1, x2 + 1, y2 + 1), line + 2, DARK)
        draw_frame(frame.y, (x1, y1, x2, y2), line, y)
        draw_frame(frame.u, half, line // 2, u)
        draw_frame(frame.v, half, line // 2, v)

    def paste(self, label, place):
        """See RGBCanvas."""
        frame = self.frame
        height, width = place[3] - place[1], place[2] - place[0]
        x, y = place[0] // 2, place[1] // 2
        frame.y[2 * y : 2 * y + height, 2 * x : 2 * x + width] = label.y[:height, :width]
        height, width = (height + 1) // 2, (width + 1) // 2
        frame.u[y : y + height, x : x + width] = label.u[:height, :width]
        frame.v[y : y + height, x : x + width] = label.v[:height, :width]


def draw_frame(plane, corners, line, value):
    """A frame, `line` pixels wide, between x1, y1 and x2, y2 (which don't belong to it); cut off at the plane's edges.

    value: a number for planes [H, W], three of them for pictures [H, W, 3].
    """
    height, width = plane.shape[:2]
    x1, y1, x2, y2 = corners
    left, right = (min(max(x, 0), width) for x in (x1 + line, x2 - line))
    top, bottom = (min(max(y, 0), height) for y in (y1 + line, y2 - line))
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    left, top, right, bottom = min(left, x2), min(top, y2), max(right, x1), max(bottom, y1)
    row = value
    if plane.ndim == 3:  # whole rows at once: repeating three bytes for each pixel takes several times as long
        row = np.empty((x2 - x1, 3), np.uint8)
        row[:] = value
    plane[y1:top, x1:x2] = row
    plane[bottom:y2, x1:x2] = row
    plane[y1:y2, x1:left] = row[: left - x1] if plane.ndim == 3 else value
    plane[y1:y2, right:x2] = row[: x2 - right] if plane.ndim == 3 else value


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
