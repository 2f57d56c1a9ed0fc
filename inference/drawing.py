"""Draw detections into a picture: boxes, and labels that stay legible from 320 to 3840 pixels of width."""

import unicodedata
from functools import lru_cache

import cv2
import numpy as np

from inference.canvas import canvas_of

# Steady colours (RGB) for the first classes, far from each other and from the greens and browns of photographs; later
# classes go round the colour circle by the golden ratio.
PALETTE = [(255, 56, 56), (255, 204, 153), (255, 178, 29), (140, 82, 255), (72, 249, 10), (255, 149, 200), (0, 96, 255)]
PALETTE += [(255, 112, 31), (26, 205, 170), (203, 56, 255), (207, 210, 49), (255, 55, 199), (132, 173, 255)]
PALETTE += [
    (0, 158, 66),
    (0, 194, 255),
    (96, 224, 224),
    (214, 40, 110),
    (170, 120, 60),
    (178, 255, 140),
    (120, 110, 200),
]

CROWD = 100  # from so many labels on, the others don't look for a free place: there is none


@lru_cache
def class_colour(label):
    """Colour of a class: (red, green, blue), always the same for the same index."""
    if label < len(PALETTE):
        return PALETTE[label]
    hue = int(180 * ((label * 0.61803398875) % 1))
    saturation, value = ((230, 255), (140, 255), (255, 190))[label % 3]
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    return tuple(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist())


def text_colour(background):
    """Black or white (RGB), whichever stands out more against a colour: by the contrast ratio of WCAG 2."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def draw_detections(frame, detections):
    """Draw boxes and labels into a frame, in place.

    Args:
        frame: uint8 RGB [H, W, 3], or a PlanarFrame.
        detections: Detections, the boxes in pixels of this frame. Where boxes overlap, the better score lies on top.
    """
    if not len(detections.boxes):
        return
    straight = not isinstance(frame, np.ndarray) or frame.flags.c_contiguous
    canvas = canvas_of(frame if straight else np.ascontiguousarray(frame), label_patch)
    height, width = canvas.shape[:2]
    line = max(round(max(height, width) / 480), 2)
    size = text_size(height, width)
    order = np.argsort(detections.scores, kind="stable")
    corners = np.rint(np.clip(detections.boxes, 0, [width - 1, height - 1] * 2)).astype(int)[order]
    colours = [class_colour(label) for label in detections.labels[order].tolist()]
    canvas.boxes(corners, colours, line)

    scores = detections.scores.tolist()
    texts = [f"{detections.names[i]} {scores[i]:.2f}" for i in order.tolist()]
    labels = [canvas.label(text, size, colour) for text, colour in zip(texts, colours, strict=True)]
    places = []
    for label, box in zip(reversed(labels), reversed(corners.tolist()), strict=True):  # the best choose first
        taken = places if len(places) < CROWD else []
        places.append(place_label(canvas.shape, label.shape, box, line, taken))
    for label, place in zip(labels, reversed(places), strict=True):
        canvas.paste(label, place)
    if not straight:
        frame[...] = canvas.frame


def text_size(height, width):
    """Height of the letters' line in pixels: grows with the picture, but more slowly."""
    return max(round(0.012 * max(height, width) + 5), 12)


def place_label(picture, label, corners, line, taken):
    """Find a label's place: above its box, else inside or below, clear of the others if it can, never outside.

    Args: shapes (height, width, ...) of picture and label; corners of the box; places already taken, a list of such.
    Returns the place: (x1, y1, x2, y2) in pixels.
    """
    height, width = picture[:2]
    high, wide = min(label[0], height), min(label[1], width)
    x1, y1, x2, y2 = corners
    left, right = max(min(x1 - 1, width - wide), 0), max(min(x2 + 1, width) - wide, 0)
    inside = max(min(y1 + line, height - high), 0)
    around = [(left, y1 - high), (right, y1 - high), (left, y2 + 1), (right, y2 + 1)]
    within = [(left, inside), (right, inside)]
    small = y2 - y1 < 3 * high or x2 - x1 < wide  # a label within would hide what it names
    places = around + within if small else around[:1] + within[:1] + around[1:] + within[1:]
    places = [(x, y, x + wide, y + high) for x, y in places if 0 <= y <= height - high]
    free = (place for place in places if not any(overlap(place, other) for other in taken))
    return next(free, places[0])


def overlap(a, b):
    """Whether two places (x1, y1, x2, y2) share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=1024)
def label_patch(text, size, colour):
    """A label: text on the colour of its class, uint8 RGB [h, w, 3]; kept, since the same ones come every frame."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    margin = max(size // 5, 2)
    if hasattr(cv2, "FontFace"):  # OpenCV 5 has a TrueType font with the letters of most languages
        font = cv2.FontFace("sans")
        write = {"fface": font, "size": size, "weight": 600}
        _, _, wide, _ = cv2.getTextSize((0, 0), text, (0, 0), **write)
        baseline = round(0.95 * size)
        high = round(1.3 * size)
    else:
        text = plain(text)
        scale, thick = size / 28, max(round(size / 14), 1)
        (wide, tall), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
        write = {"fontFace": cv2.FONT_HERSHEY_SIMPLEX, "fontScale": scale, "thickness": thick, "lineType": cv2.LINE_AA}
        baseline, high = tall + margin, tall + below + margin
    patch = np.full((high, wide + 2 * margin, 3), colour, np.uint8)
    cv2.putText(patch, text, (margin, baseline), color=text_colour(colour), **write)
    patch.setflags(write=False)
    return patch


def plain(text):
    """A text in ASCII, for the stroke fonts of OpenCV 4: accents dropped, other letters as question marks."""
    text = text.replace("ß", "ss").replace("æ", "ae").replace("ø", "o")
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return text.encode("ascii", "replace").decode()
