"""Draw detections into an image: boxes, and labels that are legible from 320 to 3840 pixels of width."""

import unicodedata
from functools import lru_cache

import cv2
import numpy as np

# RGB colors of the first classes, far from each other and from the greens and browns of photographs.
PALETTE = (
    ((255, 56, 56), (255, 204, 153), (255, 178, 29), (140, 82, 255), (72, 249, 10))
    + ((255, 149, 200), (0, 96, 255), (255, 112, 31), (26, 205, 170), (203, 56, 255))
    + ((207, 210, 49), (255, 55, 199), (132, 173, 255), (0, 158, 66), (0, 194, 255))
    + ((96, 224, 224), (214, 40, 110), (170, 120, 60), (178, 255, 140), (120, 110, 200))
)
RIM = (16, 16, 16)  # of a thin line around each box, so that it is visible on any background
CROWD = 100  # beyond this number, labels may overlap


@lru_cache
def class_color(label):
    """Return the color of a class, (red, green, blue); always the same for the same index."""
    if label < len(PALETTE):
        return PALETTE[label]
    hue = int(180 * ((label * 0.61803398875) % 1))  # around the color circle by the golden ratio
    saturation, value = ((230, 255), (140, 255), (255, 190))[label % 3]
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    return tuple(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist())


def text_color(background):
    """Return black or white (RGB), whichever has the higher contrast ratio (WCAG 2) on a background color."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def draw_detections(image, detections, line_width=None, labels=True, scores=True):
    """Draw boxes and labels in place. If they overlap, the higher score is on top.

    Args:
        image: uint8 RGB [H, W, 3].
        detections: Detections, with boxes in pixels of this image.
        line_width: of the boxes, in pixels; None: chosen by the size of the image.
        labels: draw class names. scores: add scores to them.
    """
    height, width = image.shape[:2]
    line = line_width or max(round(max(height, width) / 480), 2)
    size = text_size(height, width)
    order = np.argsort(detections.scores, kind="stable")
    boxes = np.rint(np.clip(detections.boxes, 0, [width - 1, height - 1] * 2)).astype(int)[order].tolist()
    colors = [class_color(label) for label in detections.labels[order].tolist()]
    for box, color in zip(boxes, colors, strict=True):
        _draw_box(image, box, line, color)

    if not labels:
        return
    texts = [detections.names[i] + (f" {detections.scores[i]:.2f}" if scores else "") for i in order.tolist()]
    patches = [label_patch(text, size, color) for text, color in zip(texts, colors, strict=True)]
    places = []
    for patch, box in zip(reversed(patches), reversed(boxes), strict=True):  # the highest score first
        taken = places if len(places) < CROWD else []
        places.append(place_label(image.shape, patch.shape, box, line, taken))
    for patch, (x1, y1, x2, y2) in zip(patches, reversed(places), strict=True):
        image[y1:y2, x1:x2] = patch[: y2 - y1, : x2 - x1]


def _draw_box(image, box, line, color):
    """Draw a box with lines of `line` pixels just inside its corners x1, y1, x2, y2, and a dark rim on both sides."""
    x1, y1, x2, y2 = box[0], box[1], box[2] + 1, box[3] + 1
    for grow, thick, paint in ((1, line + 2, RIM), (0, line, color)):
        left, top = max(x1 - grow, 0), max(y1 - grow, 0)
        right, bottom = x2 + grow, y2 + grow
        inner_left, inner_top = x1 - grow + thick, y1 - grow + thick
        inner_right, inner_bottom = max(right - thick, left), max(bottom - thick, top)
        image[top:inner_top, left:right] = paint
        image[inner_bottom:bottom, left:right] = paint
        image[top:bottom, left:inner_left] = paint
        image[top:bottom, inner_right:right] = paint


def text_size(height, width):
    """Return the height of a line of text in pixels. It grows more slowly than the image."""
    return max(round(0.012 * max(height, width) + 5), 12)


def place_label(image_shape, label_shape, box, line, taken):
    """Find a place for a label: above its box, else inside or below, free of other labels if possible.

    Args:
        image_shape, label_shape: (height, width, ...).
        box: x1, y1, x2, y2. line: thickness of its lines. taken: list of places that are not free.

    Returns:
        (x1, y1, x2, y2), always within the image.
    """
    height, width = image_shape[:2]
    high, wide = min(label_shape[0], height), min(label_shape[1], width)
    x1, y1, x2, y2 = box
    left, right = max(min(x1 - 1, width - wide), 0), max(min(x2 + 1, width) - wide, 0)
    inside = max(min(y1 + line, height - high), 0)
    around = [(left, y1 - high), (right, y1 - high), (left, y2 + 1), (right, y2 + 1)]
    within = [(left, inside), (right, inside)]
    small = y2 - y1 < 3 * high or x2 - x1 < wide  # a label inside would hide the object
    places = around + within if small else around[:1] + within[:1] + around[1:] + within[1:]
    places = [(x, y, x + wide, y + high) for x, y in places if 0 <= y <= height - high]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(a, b):
    """Return whether two places (x1, y1, x2, y2) share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=1024)
def label_patch(text, size, color):
    """Render a label, text on the color of its class: uint8 RGB [h, w, 3], read-only. Cached for the next frames."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    margin = max(size // 5, 2)
    if hasattr(cv2, "FontFace"):  # OpenCV 5 has a TrueType font with the letters of most languages
        write = {"fface": cv2.FontFace("sans"), "size": size, "weight": 600}
        wide = cv2.getTextSize((0, 0), text, (0, 0), **write)[2]
        baseline, high = round(0.95 * size), round(1.3 * size)
    else:
        text = _to_ascii(text)
        write = {"fontFace": cv2.FONT_HERSHEY_SIMPLEX, "fontScale": size / 28, "thickness": max(round(size / 14), 1)}
        (wide, tall), below = cv2.getTextSize(text, **write)
        write["lineType"] = cv2.LINE_AA
        baseline, high = tall + margin, tall + below + margin
    patch = np.full((high, wide + 2 * margin, 3), color, np.uint8)
    cv2.putText(patch, text, (margin, baseline), color=text_color(color), **write)
    patch.setflags(write=False)
    return patch


def _to_ascii(text):
    """Convert a text for the fonts of OpenCV 4: accents are dropped, other letters become question marks."""
    text = text.replace("ß", "ss").replace("æ", "ae").replace("ø", "o")
    text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return text.encode("ascii", "replace").decode()
