"""VOC AP against a slow, literal oracle and against cases small enough to work out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.voc import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    DetectionArrays,
    GroundTruthArrays,
    area_ap,
    best_overlaps,
    eleven_point_ap,
    evaluate_detections,
    paired_iou,
    precision_recall,
)

CLASS_NAMES = ("cat", "dog", "train", "sofa")


def literal_overlap(detection, truth, rule):
    shift, extra = (-1, 0) if rule == "reference" else (0, 1)
    x1, y1, x2, y2 = detection
    u1, v1, u2, v2 = (number + shift for number in truth)
    width, height = min(x2, u2) - max(x1, u1) + extra, min(y2, v2) - max(y1, v1) + extra
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((x2 - x1 + extra) * (y2 - y1 + extra) + (u2 - u1 + extra) * (v2 - v1 + extra) - both)


def literal_class(detections, truths, rule):
    """detections [(picture, score, box)], truths [(picture, box, difficult)] of one class: (AP 11, AP area) or None."""
    total = sum(not difficult for _, _, difficult in truths)
    if total == 0:
        return None
    taken, points, right, wrong = set(), [], 0, 0
    for picture, _, box in sorted(detections, key=lambda detection: -detection[1]):  # Python's sort is stable
        highest, match = -1.0, None
        for number, (other_picture, truth, _) in enumerate(truths):
            if other_picture == picture and literal_overlap(box, truth, rule) > highest:
                highest, match = literal_overlap(box, truth, rule), number
        enough = match is not None and (highest > 0.5 if rule == "reference" else highest >= 0.5)
        if enough and truths[match][2]:
            pass
        elif enough and match not in taken:
            taken.add(match)
            right += 1
        else:
            wrong += 1
        points.append((right / total, right / (right + wrong) if right + wrong else 0.0))
    levels = list(np.arange(0, 1.1, 0.1)) if rule == "reference" else [k / 10 for k in range(11)]
    eleven = sum(max((p for r, p in points if r >= level), default=0.0) for level in levels) / 11
    area, before = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[number:])
        before = recall
    return eleven, area


def random_case(random, pictures=5, objects=12, detections=40):
    """Boxes on a coarse grid (so IoUs tie and hit 1/2 exactly), scores of one decimal, copies; sofa has no truth,
    train no detections, the last picture has nothing."""

    def boxes(count):
        corners = random.randint(1, 9, (count, 2))
        return np.hstack([corners, corners + random.randint(0, 7, (count, 2))]).astype(float)

    truth_boxes = boxes(objects)
    truth = GroundTruthArrays(
        random.randint(0, max(pictures - 1, 1), objects),
        random.randint(0, 3, objects),
        random.rand(objects) < 0.3,
        truth_boxes,
    )
    found_boxes, found_pictures = boxes(detections), random.randint(0, max(pictures - 1, 1), detections)
    if objects and detections:
        copies = random.rand(detections) < 0.6
        sources = random.randint(0, objects, detections)
        jittered = truth_boxes[sources] + random.choice([0, 0, 0, 0.5, 1, -1], (detections, 4))
        found_boxes = np.where(copies[:, None], jittered, found_boxes)
        found_pictures = np.where(copies, truth.pictures[sources], found_pictures)
    found = DetectionArrays(
        found_pictures,
        random.choice([0, 1, 3], detections),
        random.randint(0, 11, detections) / 10,
        found_boxes,
    )
    return found, truth


def assert_equals_oracle(found, truth, rule):
    result = evaluate_detections(found, truth, CLASS_NAMES, rule)
    expected = {}
    for label, name in enumerate(CLASS_NAMES):
        rows = [row for row in range(len(found)) if found.labels[row] == label]
        detections = [(found.pictures[row], found.scores[row], tuple(found.boxes[row])) for row in rows]
        rows = [row for row in range(len(truth)) if truth.labels[row] == label]
        truths = [(truth.pictures[row], tuple(truth.boxes[row]), truth.difficult[row]) for row in rows]
        expected[name] = literal_class(detections, truths, rule)
    for of_class in result.classes:
        if expected[of_class.name] is None:
            assert math.isnan(of_class.ap_11)
            assert math.isnan(of_class.ap_area)
        else:
            assert of_class.ap_11 == pytest.approx(expected[of_class.name][0], abs=1e-12)
            assert of_class.ap_area == pytest.approx(expected[of_class.name][1], abs=1e-12)
    assert list(result.left_out) == [name for name, figures in expected.items() if figures is None]
    scored = [figures for figures in expected.values() if figures is not None]
    if scored:
        assert result.mean_ap_11 == pytest.approx(sum(f[0] for f in scored) / len(scored), abs=1e-12)
        assert result.mean_ap_area == pytest.approx(sum(f[1] for f in scored) / len(scored), abs=1e-12)
    else:
        assert math.isnan(result.mean_ap_11)


@pytest.mark.parametrize("rule", ["reference", "devkit"])
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pictures=st.integers(1, 8),
    objects=st.integers(0, 30),
    detections=st.integers(0, 60),
)
def test_random_detections_equal_the_literal_oracle(rule, seed, pictures, objects, detections):
    found, truth = random_case(np.random.RandomState(seed), pictures, objects, detections)
    assert_equals_oracle(found, truth, rule)


def test_random_cases_hold_what_they_are_meant_to():
    """The draws do contain ties, IoUs of exactly one half, ignored detections and hits: the oracle is not idle."""
    seen = {"tie": 0, "half": 0, IGNORED: 0, TRUE_POSITIVE: 0, FALSE_POSITIVE: 0}
    for seed in range(60):
        result = evaluate_detections(*random_case(np.random.RandomState(seed)), CLASS_NAMES, "devkit")
        for of_class in result.classes:
            seen["tie"] += len(of_class.scores) - len(np.unique(of_class.scores))
            seen["half"] += np.count_nonzero(of_class.matches.iou == 0.5)
            for outcome in (IGNORED, TRUE_POSITIVE, FALSE_POSITIVE):
                seen[outcome] += np.count_nonzero(of_class.matches.outcome == outcome)
    assert min(seen.values()) > 10, seen


def arrays(detections=(), objects=()):
    """detections (picture, label, score, box) and objects (picture, label, difficult, box) as the two array classes."""

    def columns(rows):
        rows = list(rows)
        return [np.array([row[k] for row in rows], dtype=int) for k in (0, 1)] + [
            [row[2] for row in rows],
            np.array([row[3] for row in rows], dtype=float).reshape(-1, 4),
        ]

    return DetectionArrays(*columns(detections)), GroundTruthArrays(*columns(objects))


BOX, AWAY = (11, 11, 50, 50), (111, 111, 150, 150)


def one_class(detections, objects, rule="devkit"):
    return evaluate_detections(*arrays(detections, objects), ["cat"], rule).classes[0]


def test_second_detection_of_an_object_is_a_false_positive():
    result = one_class([(0, 0, 0.9, BOX), (0, 0, 0.8, BOX)], [(0, 0, False, BOX), (0, 0, False, AWAY)])
    assert result.matches.outcome.tolist() == [TRUE_POSITIVE, FALSE_POSITIVE]
    assert result.recall.tolist() == [0.5, 0.5]
    assert result.precision.tolist() == [1.0, 0.5]
    assert result.ap_area == 0.5
    assert result.ap_11 == pytest.approx(6 / 11)  # recall levels 0, 0.1, ... 0.5


def test_difficult_objects_count_neither_as_missed_nor_as_found():
    objects = [(0, 0, True, BOX), (0, 0, False, AWAY)]
    result = one_class([(0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (0, 0, 0.7, AWAY)], objects)
    assert result.matches.outcome.tolist() == [IGNORED, IGNORED, TRUE_POSITIVE]
    assert (result.objects, result.difficult, result.detections) == (1, 1, 3)
    assert result.ap_area == result.ap_11 == 1.0


def test_highest_overlap_is_chosen_before_difficult_is_looked_at():
    near = (11, 11, 50, 48)
    detection = [(0, 0, 0.9, (11, 11, 50, 49.5))]
    assert one_class(detection, [(0, 0, True, BOX), (0, 0, False, near)]).matches.outcome.tolist() == [IGNORED]
    assert one_class(detection, [(0, 0, False, BOX), (0, 0, True, near)]).matches.outcome.tolist() == [TRUE_POSITIVE]


def test_detections_match_objects_of_their_own_picture_and_class_alone():
    found, truth = arrays([(1, 0, 0.9, BOX), (0, 1, 0.9, BOX)], [(0, 0, False, BOX)])
    result = evaluate_detections(found, truth, ["cat", "dog"])
    assert result.classes[0].ap_11 == 0
    assert result.left_out == ("dog",)
    assert math.isnan(result.classes[1].ap_11)


def test_class_without_detections_scores_zero_and_stays_in_the_mean():
    found, truth = arrays([(0, 0, 0.9, BOX)], [(0, 0, False, BOX), (0, 1, False, BOX)])
    result = evaluate_detections(found, truth, ["cat", "dog"], "devkit")
    assert [of_class.ap_11 for of_class in result.classes] == [1.0, 0.0]
    assert result.mean_ap_11 == 0.5
    assert result.left_out == ()


def test_class_with_nothing_but_difficult_objects_is_left_out():
    found, truth = arrays([(0, 0, 0.9, BOX)], [(0, 0, True, BOX), (0, 1, False, BOX)])
    result = evaluate_detections(found, truth, ["cat", "dog"])
    assert result.left_out == ("cat",)
    assert result.mean_ap_area == 0.0


def test_nothing_at_all_gives_no_figure():
    result = evaluate_detections(*arrays(), ["cat", "dog"])
    assert math.isnan(result.mean_ap_11)
    assert result.left_out == ("cat", "dog")


@pytest.mark.parametrize(("rule", "outcome"), [("reference", FALSE_POSITIVE), ("devkit", TRUE_POSITIVE)])
def test_half_an_overlap_counts_in_the_devkit_only(rule, outcome):
    """Exactly 1/2 in either rule's own measure: the lower half of a 10 x 10 square."""
    half = (1, 1, 10, 5) if rule == "devkit" else (0, 0, 10, 5)
    square = (1, 1, 10, 10) if rule == "devkit" else (1, 1, 11, 11)
    result = one_class([(0, 0, 0.9, half)], [(0, 0, False, square)], rule)
    assert result.matches.iou.tolist() == [0.5]
    assert result.matches.outcome.tolist() == [outcome]


def test_equal_scores_keep_the_order_given():
    detections = [(0, 0, 0.5, AWAY), (0, 0, 0.5, BOX), (0, 0, 0.9, AWAY), (0, 0, 0.5, BOX)]
    result = one_class(detections, [(0, 0, False, BOX)])
    assert result.matches.order.tolist() == [2, 0, 1, 3]
    assert result.matches.found_by.tolist() == [1]


def test_scores_are_not_rounded():
    """Two scores that agree in seven digits are no tie."""
    detections = [(0, 0, 0.9 - 1e-9, AWAY), (0, 0, 0.9, BOX)]
    assert one_class(detections, [(0, 0, False, BOX)]).ap_area == 1.0


def test_inverted_and_empty_boxes_overlap_nothing():
    boxes = np.array([[5.0, 5, 2, 2], [3, 3, 3, 9], [0, 0, 10, 10]])
    assert paired_iou(boxes, np.tile([0.0, 0, 10, 10], (3, 1))).tolist() == [0.0, 0.0, 1.0]
    assert paired_iou(boxes[1:2], boxes[1:2], size_offset=1).tolist() == [1.0]


def test_best_overlap_takes_the_first_of_equals():
    detections = [(3, 0, 0.5, BOX), (4, 0, 0.5, BOX), (5, 0, 0.5, BOX)]
    objects = [(3, 0, False, AWAY), (5, 0, False, AWAY), (3, 0, False, BOX), (3, 0, False, BOX), (5, 0, False, AWAY)]
    iou, best = best_overlaps(*arrays(detections, objects))
    assert best.tolist() == [2, -1, 1]
    assert iou == pytest.approx([38**2 / (2 * 39**2 - 38**2), 0, 0])


def test_recall_levels_of_the_reference_are_not_exact():
    """np.arange's 0.30000000000000004 is not reached by a recall of 3/10: the reference loses that level."""
    outcome = np.array([TRUE_POSITIVE] * 3)
    recall, precision = precision_recall(outcome, 10)
    assert eleven_point_ap(recall, precision) == pytest.approx(3 / 11)
    assert eleven_point_ap(recall, precision, np.arange(11) / 10) == pytest.approx(4 / 11)
    assert area_ap(recall, precision) == pytest.approx(0.3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_and_boxes_must_be_finite(bad):
    with pytest.raises(ValueError, match="scores"):
        arrays([(0, 0, bad, BOX)])
    with pytest.raises(ValueError, match="boxes"):
        arrays([], [(0, 0, False, (1, 2, bad, 4))])


def test_wrong_arguments_are_refused():
    found, truth = arrays([(0, 2, 0.5, BOX)])
    with pytest.raises(ValueError, match="labels reach"):
        evaluate_detections(found, truth, ["cat"])
    with pytest.raises(ValueError, match="coco"):
        evaluate_detections(found, truth, CLASS_NAMES, "coco")
    with pytest.raises(ValueError, match="integers"):
        DetectionArrays([0.5], [0], [0.5], [BOX])
    with pytest.raises(ValueError, match="length"):
        DetectionArrays([0, 1], [0], [0.5], [BOX])
