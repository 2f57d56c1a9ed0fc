"""SSD's formulas once more, slow and obvious: one box, one prior, one class at a time, in float64 of Python and NumPy.

Boxes are (x1, y1, x2, y2), priors (cx, cy, w, h), both in fractions of the image.
"""

import math

import numpy as np

VARIANCE = (0.1, 0.2)


def iou(a, b):
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


def corners(prior):
    cx, cy, w, h = prior
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)


def encode(box, prior, variance=VARIANCE):
    cx, cy, w, h = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    return (
        (cx - prior[0]) / prior[2] / variance[0],
        (cy - prior[1]) / prior[3] / variance[0],
        math.log(w / prior[2]) / variance[1],
        math.log(h / prior[3]) / variance[1],
    )


def decode(offsets, prior, variance=VARIANCE):
    cx = prior[0] + offsets[0] * variance[0] * prior[2]
    cy = prior[1] + offsets[1] * variance[0] * prior[3]
    w = prior[2] * math.exp(offsets[2] * variance[1])
    h = prior[3] * math.exp(offsets[3] * variance[1])
    return corners((cx, cy, w, h))


def match(overlaps, threshold):
    """The object of each prior, or -1: greedy over all pairs, then whatever overlaps by the threshold.

    overlaps: [objects, priors]. Of equal overlaps the first object, then the first prior goes first.
    """
    free = np.array(overlaps)
    matched = [int(best) if free[best, prior] >= threshold else -1 for prior, best in enumerate(free.argmax(axis=0))]
    while free.max() > 0:
        truth, prior = np.unravel_index(free.argmax(), free.shape)
        matched[prior] = int(truth)
        free[truth], free[:, prior] = 0, 0
    return matched


def nms(boxes, scores, threshold):
    """Indices of the kept boxes, best first: take the best, drop what overlaps it by more than the threshold."""
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if iou(boxes[best], boxes[i]) <= threshold]
    return kept


def softmax(row):
    powers = np.exp(np.asarray(row, np.float64) - np.max(row))
    return powers / powers.sum()


def smooth_l1(a, b):
    return sum(0.5 * (x - y) ** 2 if abs(x - y) < 1 else abs(x - y) - 0.5 for x, y in zip(a, b, strict=True))
