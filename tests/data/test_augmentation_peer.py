"""The geometry's distributions against torchvision's RandomZoomOut, RandomIoUCrop and RandomHorizontalFlip.

Only boxes pass through torchvision's transforms, no pixels. Both sides draw with fixed seeds, so that a comparison
comes out the same each time; the last test shows what the comparison notices.
"""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from utils.augmentations import boxes_in_window, draw_window

DRAWS = 5000
WIDTH, HEIGHT = 4000, 3000  # large, as torchvision rounds crops to whole pixels
# Kolmogorov-Smirnov: two samples of this size from one distribution lie further apart once in a thousand times.
LARGEST_GAP = 1.95 * np.sqrt(2 / DRAWS)

LAYOUTS = {
    "one large": [[0.2, 0.15, 0.73, 0.91]],
    "several": [[0.1, 0.1, 0.3, 0.35], [0.25, 0.4, 0.8, 0.95], [0.7, 0.05, 0.95, 0.3], [0.6, 0.6, 0.65, 0.7]],
}
FIGURES = ("expanded", "area", "aspect", "left", "top", "kept", "box left", "box top", "box area", "mirrored")


def describe(window, boxes):
    """One row of FIGURES: window (x, y, width, height in pixels of the source, mirrored), boxes seen in it [N, 4]."""
    x, y, width, height, mirrored = window
    first = boxes[0]
    return (
        max(width / WIDTH, height / HEIGHT, 1),
        width * height / (WIDTH * HEIGHT),
        (height / HEIGHT) / (width / WIDTH),
        x / width,
        y / height,
        len(boxes),
        first[0],
        first[1],
        (first[2] - first[0]) * (first[3] - first[1]),
        mirrored,
    )


def our_draws(boxes, max_expand=4.0):
    """FIGURES of our augmentation: float [DRAWS, figures]."""
    boxes, rng, rows = np.array(boxes), np.random.default_rng(0), []
    for _ in range(DRAWS):
        window, kept = draw_window(rng, WIDTH, HEIGHT, boxes, max_expand)
        seen = boxes_in_window(boxes[kept], window, WIDTH, HEIGHT)
        rows.append(describe((window.x, window.y, window.width, window.height, window.mirrored), seen))
    return np.array(rows)


def torchvision_draws(boxes, side_range=(1.0, 4.0), options=None):
    """FIGURES of torchvision's transforms: float [DRAWS, figures]."""
    zoom, crop = v2.RandomZoomOut(side_range=side_range), v2.RandomIoUCrop(trials=50, sampler_options=options)
    flip = v2.RandomHorizontalFlip()
    source = torch.tensor(boxes) * torch.tensor([WIDTH, HEIGHT] * 2)
    torch.manual_seed(0)
    rows = []
    for _ in range(DRAWS):
        boxes = zoom(tv_tensors.BoundingBoxes(source, format="XYXY", canvas_size=(HEIGHT, WIDTH)))
        x, y = (source[0, :2] - boxes[0, :2]).tolist()  # the canvas' corner, seen from the picture's
        height, width = boxes.canvas_size
        chosen = crop.make_params([boxes])  # the way through forward() asks for an image
        if chosen:
            x, y, width, height = x + chosen["left"], y + chosen["top"], chosen["width"], chosen["height"]
            boxes = crop.transform(boxes, chosen)[chosen["is_within_crop_area"]]
            boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        mirrored = flip(boxes)
        was_mirrored = not torch.equal(mirrored, boxes)
        seen = v2.ClampBoundingBoxes()(mirrored).numpy() / ([width, height] * 2)
        rows.append(describe((x, y, width, height, was_mirrored), seen))
    return np.array(rows)


def gap(a, b):
    """Largest distance of two empirical distributions."""
    points = np.concatenate([a, b])
    a, b = np.sort(a), np.sort(b)
    return abs(np.searchsorted(a, points, "right") / len(a) - np.searchsorted(b, points, "right") / len(b)).max()


def gaps(ours, theirs):
    """Gap of each figure: dict. Rounded, as torchvision's come from whole pixels and ties would stand apart."""
    return {
        name: gap(*(np.round(side[:, column], 2) for side in (ours, theirs))) for column, name in enumerate(FIGURES)
    }


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_distributions_agree(layout):
    apart = gaps(our_draws(LAYOUTS[layout]), torchvision_draws(LAYOUTS[layout]))
    assert {name: round(value, 3) for name, value in apart.items() if value > LARGEST_GAP} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "noticed"),
    [
        ({"side_range": (1.0, 3.0)}, {"expanded", "area"}),
        ({"options": [0.0, 0.1, 0.3, 0.7, 0.9, 1.0]}, {"box area"}),
    ],
)
def test_what_the_comparison_notices(settings, noticed):
    """A smaller expansion; the limit 0.5 left out, as the reference does."""
    boxes = LAYOUTS["one large"]
    apart = gaps(our_draws(boxes), torchvision_draws(boxes, **settings))
    assert noticed <= {name for name, value in apart.items() if value > LARGEST_GAP}
