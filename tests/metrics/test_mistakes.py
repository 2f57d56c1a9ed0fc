"""Which mistakes are shown, what is said about them, and how they are drawn."""

import numpy as np
import pytest

from metrics.mistakes import FALSE, TRUTH, Mistake, draw_mistake, find_mistakes
from metrics.voc import DetectionArrays, GroundTruthArrays, evaluate_detections

LEFT, MIDDLE, RIGHT = (11, 11, 40, 40), (51, 11, 80, 40), (91, 11, 120, 40)


def mistakes_of(objects, detections, threshold=0.3, **settings):
    """Objects (image, label, difficult, box), detections (image, label, score, box); mistakes of cat and dog."""
    truth = GroundTruthArrays(*zip(*objects, strict=True))
    found = DetectionArrays(*zip(*detections, strict=True))
    result = evaluate_detections(found, truth, ("cat", "dog"), "devkit")
    return find_mistakes(result, found, truth, threshold, **settings)


def test_false_positives_come_by_descending_score_with_their_reason():
    (shown, false, missed), _ = mistakes_of(
        [(0, 0, False, LEFT), (0, 1, False, MIDDLE)],
        [(0, 0, 0.95, LEFT), (0, 0, 0.5, (11, 11, 40, 39)), (0, 0, 0.9, MIDDLE), (0, 0, 0.4, (31, 11, 60, 40)),
         (0, 0, 0.8, RIGHT), (0, 0, np.float32(0.3), RIGHT)],
    )  # fmt: skip
    reasons = ["0.90: on dog", "0.80: no cat there", "0.50: second detection of an object"]
    assert [mistake.reason for mistake in shown] == [*reasons, "0.40: badly placed: IoU 0.20"]
    assert (false, missed) == (4, 0)
    assert shown[0].objects.tolist() == [list(LEFT)]


def test_misses_put_the_never_found_first_and_large_ones_before_small():
    small, large = (1, 1, 5, 5), (1, 51, 100, 100)
    (shown, false, missed), (dogs, _, _) = mistakes_of(
        [(0, 0, False, LEFT), (1, 0, False, small), (1, 0, False, large), (1, 0, True, RIGHT), (2, 0, False, MIDDLE),
         (3, 0, False, MIDDLE)],
        [(0, 0, 0.5, LEFT), (1, 1, 0.9, large), (2, 0, 0.6, MIDDLE), (3, 0, 0.1, MIDDLE)],
        threshold=0.5,
    )  # fmt: skip
    assert [mistake.image for mistake in shown] == [1, 1, 3, 0]
    reasons = ["never found; taken for dog (0.90)", "never found", "found only at 0.10", "found only at 0.50"]
    assert [mistake.reason for mistake in shown] == reasons
    assert (false, missed) == (0, 4)
    assert shown[0].detected.tolist() == [list(large)]
    assert dogs[0].reason == "0.90: on cat"


def test_few_are_shown_but_all_are_counted():
    objects = [(image, 0, False, LEFT) for image in range(9)]
    detections = [(image, 0, 0.7 + image / 100, RIGHT) for image in range(9)]
    (shown, false, missed), _ = mistakes_of(objects, detections, most=2)
    assert [mistake.image for mistake in shown if not mistake.missed] == [8, 7]
    assert (len(shown), false, missed) == (4, 9, 9)


def a_mistake(box, missed=False, objects=()):
    objects = np.array(objects, dtype=float).reshape(-1, 4)
    return Mistake(missed, 0, np.array(box, dtype=float), "reason", objects, np.empty((0, 4)))


@pytest.mark.parametrize("box", [
    (1, 1, 200, 100), (-50, -50, 1e9, 300), (1, 1, 1, 1), (200, 100, 200, 100), (150, 1, 260, 9), (9, -9, 99, -3),
])  # fmt: skip
def test_crops_stay_inside_the_image(box):
    image = np.full((100, 200, 3), 128, dtype=np.uint8)
    crop = draw_mistake(image, a_mistake(box))
    assert (crop.dtype, max(crop.shape[:2])) == (np.uint8, 240)
    assert (image == 128).all()  # the image itself isn't drawn on


def test_boxes_are_drawn_where_they_are_in_their_color():
    image = np.full((100, 100, 3), 128, dtype=np.uint8)
    red = draw_mistake(image, a_mistake((31, 31, 70, 70)))  # shown: half its size around it, 79 pixels on 240
    assert (red[60, 61:179] == FALSE).all()
    assert (red[70:170, 70:170] == 128).all()
    green = draw_mistake(image, a_mistake((31, 31, 70, 70), missed=True))
    assert (green[60, 61:177] == TRUTH).all()
    both = draw_mistake(image, a_mistake((31, 31, 70, 70), objects=[(41, 41, 60, 60), (1, 1, 5, 5)]))
    assert (both[91, 95:140] == TRUTH).all()
    assert (both[60, 61:177] == FALSE).all()
    assert (both[:50, :50] == 128).all()  # the other object lies outside the crop
