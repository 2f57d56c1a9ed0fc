"""VOC AP against a slow, literal oracle and published figures."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import slow_formulas as slow

from data.voc0712 import VOC_CLASSES, VOC_ROOT
from metrics.detection_files import read_detection_files
from metrics.ground_truth import open_evaluation_set
from metrics.voc import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    DetectionArrays,
    GroundTruthArrays,
    best_threshold,
    evaluate_detections,
)

CLASS_NAMES = ("cat", "dog", "sofa", "train")
DEVKIT = Path(os.environ.get("VOCDEVKIT") or VOC_ROOT)
BOX = (11, 11, 50, 50)


def literal_overlap(detection, truth, rule):
    """By the reference rule the truth is shifted; by the devkit's the last row and column belong to a box."""
    if rule == "reference":
        return slow.iou(detection, truth - 1)
    return slow.iou(detection + (0, 0, 1, 1), truth + (0, 0, 1, 1))


def literal_outcomes(detections, truths, rule):
    """Outcomes by descending score; detections [(image, score, box)], truths [(image, box, difficult)] of one class."""
    taken, outcomes = set(), []
    for image, _, box in sorted(detections, key=lambda detection: -detection[1]):  # Python's sort is stable
        highest, match = -1.0, None
        for number, (other_image, truth, _) in enumerate(truths):
            if other_image == image and literal_overlap(box, truth, rule) > highest:
                highest, match = literal_overlap(box, truth, rule), number
        enough = match is not None and (highest > 0.5 if rule == "reference" else highest >= 0.5)
        if enough and truths[match][2]:
            outcomes.append(IGNORED)
        elif enough and match not in taken:
            taken.add(match)
            outcomes.append(TRUE_POSITIVE)
        else:
            outcomes.append(FALSE_POSITIVE)
    return outcomes


def literal_ap(detections, truths, rule):
    """(AP over 11 points, AP as an area) of one class, or None without objects."""
    total = sum(not difficult for _, _, difficult in truths)
    if total == 0:
        return None
    points, right, wrong = [], 0, 0
    for outcome in literal_outcomes(detections, truths, rule):
        right, wrong = right + (outcome == TRUE_POSITIVE), wrong + (outcome == FALSE_POSITIVE)
        points.append((right / total, right / (right + wrong) if right + wrong else 0.0))
    levels = list(np.arange(0, 1.1, 0.1)) if rule == "reference" else [k / 10 for k in range(11)]
    eleven = sum(max((p for r, p in points if r >= level), default=0.0) for level in levels) / 11
    area, before = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[number:])
        before = recall
    return eleven, area


def literal_mean_f1(classes, threshold):
    """The mean F1 over the classes with objects; classes: [(detections, truths)]."""
    f1 = []
    for detections, truths in classes:
        if total := sum(not difficult for _, _, difficult in truths):
            kept = [row for row in detections if np.float32(row[1]) > np.float32(threshold)]
            outcomes = literal_outcomes(kept, truths, "reference")
            right, wrong = outcomes.count(TRUE_POSITIVE), outcomes.count(FALSE_POSITIVE)
            f1.append(2 * right / (2 * right + wrong + total - right))
    return sum(f1) / len(f1)


def random_case(random, images=5, objects=12, detections=40):
    """Boxes on a coarse grid (so IoUs tie and are exactly 1/2), scores with one decimal, copies; sofa has no ground
    truth, train no detections, the last image nothing."""

    def boxes(count):
        corners = random.randint(1, 9, (count, 2))
        return np.hstack([corners, corners + random.randint(0, 7, (count, 2))]).astype(float)

    truth_boxes = boxes(objects)
    truth_images, truth_labels = random.randint(0, max(images - 1, 1), objects), random.choice([0, 1, 3], objects)
    truth = GroundTruthArrays(truth_images, truth_labels, random.rand(objects) < 0.3, truth_boxes)
    found_boxes, found_images = boxes(detections), random.randint(0, max(images - 1, 1), detections)
    if objects:
        copies = random.rand(detections) < 0.6
        sources = random.randint(0, objects, detections)
        jittered = truth_boxes[sources] + random.choice([0, 0, 0, 0.5, 1, -1], (detections, 4))
        found_boxes = np.where(copies[:, None], jittered, found_boxes)
        found_images = np.where(copies, truth.images[sources], found_images)
    labels, scores = random.choice([0, 1, 2], detections), random.randint(0, 11, detections) / 10
    return DetectionArrays(found_images, labels, scores, found_boxes), truth


def by_class(found, truth):
    """[(detections, truths)] as the literal functions take them."""
    classes = []
    for label in range(len(CLASS_NAMES)):
        mine, objects = found.take(found.labels == label), truth.take(truth.labels == label)
        detections = list(zip(mine.images, mine.scores, mine.boxes, strict=True))
        classes.append((detections, list(zip(objects.images, objects.boxes, objects.difficult, strict=True))))
    return classes


@pytest.mark.parametrize("rule", ["reference", "devkit"])
@pytest.mark.parametrize("seed", range(100))
def test_random_detections_equal_the_literal_oracle(rule, seed):
    random = np.random.RandomState(seed)
    found, truth = random_case(random, *random.randint([1, 0, 0], [9, 31, 61]))
    result = evaluate_detections(found, truth, CLASS_NAMES, rule)
    expected = [literal_ap(*of_class, rule) for of_class in by_class(found, truth)]
    for each, figures in zip(result.classes, expected, strict=True):
        assert (each.ap_11, each.ap_area) == pytest.approx(figures or (math.nan, math.nan), abs=1e-12, nan_ok=True)
    assert result.left_out == tuple(CLASS_NAMES[label] for label in range(4) if expected[label] is None)
    scored = [figures for figures in expected if figures is not None]
    means = np.mean(scored, axis=0) if scored else (math.nan, math.nan)
    assert (result.mean_ap_11, result.mean_ap_area) == pytest.approx(tuple(means), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(60))
def test_best_threshold_equals_the_slow_formula(seed):
    random = np.random.RandomState(seed)
    found, truth = random_case(random, *random.randint([1, 0, 0], [9, 31, 61]))
    scores = found.scores if seed % 2 else random.rand(len(found))
    found = DetectionArrays(found.images, found.labels, scores, found.boxes)
    threshold, mean_f1 = best_threshold(found, evaluate_detections(found, truth, CLASS_NAMES))
    if truth.difficult.all():
        assert threshold == 0 and math.isnan(mean_f1)
        return
    classes = by_class(found, truth)
    means = {number / 100: literal_mean_f1(classes, number / 100) for number in range(100)}
    assert mean_f1 == pytest.approx(max(means.values()), abs=1e-12)
    assert means[threshold] == pytest.approx(mean_f1, abs=1e-12)  # at the threshold with two decimals


def test_best_threshold_lies_in_the_middle_of_the_gap():
    """A score of exactly the threshold is left out, as by Detect, in float32."""
    found = DetectionArrays([0, 1], [0, 0], [0.9, np.float32(0.6)], [BOX, BOX])
    result = evaluate_detections(found, GroundTruthArrays([0], [0], [False], [BOX]), ["cat"])
    assert best_threshold(found, result) == (0.75, 1.0)  # 0.60, 0.61 ... 0.89


PUBLISHED = (
    0.8172, 0.8544, 0.7572, 0.6958, 0.4990, 0.8480, 0.8572, 0.8737, 0.6142, 0.8233,
    0.7917, 0.8559, 0.8709, 0.8474, 0.7893, 0.5000, 0.7745, 0.7912, 0.8616, 0.7631,
)  # fmt: skip


@pytest.mark.skipif(
    not (DEVKIT / "VOC2007" / "results" / "det_test_cat.txt").is_file(),
    reason="needs published detections in VOC2007/results of the environment variable VOCDEVKIT",
)
def test_published_detections_score_what_was_published():
    images = open_evaluation_set("VOC", DEVKIT, images=False)
    names, found, _ = read_detection_files(DEVKIT / "VOC2007" / "results", "test", images.ids, images.class_names)
    assert names == VOC_CLASSES
    truth, _ = images.ground_truth(names)
    reference, devkit = (evaluate_detections(found, truth, names, rule) for rule in ("reference", "devkit"))
    means = reference.mean_ap_11, reference.mean_ap_area, devkit.mean_ap_11, devkit.mean_ap_area
    assert means == pytest.approx((0.77431, 0.79999, 0.77715, 0.80329), abs=1e-5)
    assert [each.ap_11 for each in reference.classes] == pytest.approx(PUBLISHED, abs=6e-4)  # rounded scores tie
    threshold, mean_f1 = best_threshold(found, reference)
    assert (threshold, round(mean_f1, 3)) == (0.47, 0.771)
