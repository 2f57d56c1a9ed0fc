"""Average precision as PASCAL VOC defines it: pure functions on arrays, no files.

Boxes are corners in pixels counted from 1, as VOC's own files store them: the annotation's numbers, and a detector's
boxes (which count from 0) plus 1. Both rules of the field start from these numbers:

    reference  ground truth minus 1, areas without + 1, IoU > 0.5, recall levels np.arange(0, 1.1, 0.1)
    devkit     no shift, widths and heights + 1, IoU >= 0.5, recall levels k / 10

"reference" is what 77.43 was measured with (Python code descended from Fast R-CNN's); "devkit" is VOCevaldet.m.
"""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, -1


@dataclass(frozen=True, eq=False)
class Rule:
    """What distinguishes one way of computing AP from another (pixels); strict: the IoU must exceed its limit."""

    name: str
    ground_truth_shift: float
    size_offset: float
    strict: bool
    recall_levels: np.ndarray


RULES = MappingProxyType(
    {
        "reference": Rule("reference", -1.0, 0.0, True, np.arange(0.0, 1.1, 0.1)),
        "devkit": Rule("devkit", 0.0, 1.0, False, np.arange(11) / 10),
    }
)
# For boxes that are no whole pixels, such as COCO's: nothing is shifted or added.
PLAIN = Rule("plain", 0.0, 0.0, False, np.arange(11) / 10)


@dataclass(frozen=True)
class DetectionArrays:
    """D detections of any classes in any order.

    pictures: int [D], index of the picture; labels: int [D], index of the class (0-based, no background);
    scores: float [D]; boxes: float [D, 4], corners in pixels counted from 1.
    """

    pictures: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "pictures", _indices(self.pictures, "pictures"))
        object.__setattr__(self, "labels", _indices(self.labels, "labels"))
        object.__setattr__(self, "scores", _finite(self.scores, "scores", (-1,)))
        object.__setattr__(self, "boxes", _finite(self.boxes, "boxes", (-1, 4)))
        _check_lengths(self.pictures, self.labels, self.scores, self.boxes)

    def __len__(self):
        return len(self.scores)

    def take(self, rows):
        """The detections at rows (indices, a mask or a slice)."""
        return DetectionArrays(self.pictures[rows], self.labels[rows], self.scores[rows], self.boxes[rows])


@dataclass(frozen=True)
class GroundTruthArrays:
    """G annotated objects of any classes: as DetectionArrays, with difficult: bool [G] in place of scores."""

    pictures: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    boxes: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "pictures", _indices(self.pictures, "pictures"))
        object.__setattr__(self, "labels", _indices(self.labels, "labels"))
        object.__setattr__(self, "difficult", np.asarray(self.difficult, dtype=bool).reshape(-1))
        object.__setattr__(self, "boxes", _finite(self.boxes, "boxes", (-1, 4)))
        _check_lengths(self.pictures, self.labels, self.difficult, self.boxes)

    def __len__(self):
        return len(self.difficult)

    def take(self, rows):
        """The objects at rows (indices, a mask or a slice)."""
        return GroundTruthArrays(self.pictures[rows], self.labels[rows], self.difficult[rows], self.boxes[rows])


@dataclass(frozen=True)
class Matches:
    """What became of D detections of one class against its G objects.

    order: int [D], detections by falling score (ties keep their order); the next three follow that order:
    outcome: int8 [D], TRUE_POSITIVE, FALSE_POSITIVE or IGNORED (on a difficult object);
    best: int [D], the object with the highest IoU in the same picture, -1 where the picture has none;
    iou: float [D], that IoU, 0 where there is none.
    found_by: int [G], the detection (index before sorting) that found each object, -1 where none did.
    """

    order: np.ndarray
    outcome: np.ndarray
    best: np.ndarray
    iou: np.ndarray
    found_by: np.ndarray


@dataclass(frozen=True)
class ClassResult:
    """One class's figures. objects leaves out the difficult ones; without any, both APs are NaN.

    recall, precision, scores: float [D], the curve after each detection by falling score.
    detection_rows and object_rows: the rows of the arrays given to evaluate_detections that are this class's (what
    matches.order and matches.best index).
    """

    name: str
    ap_11: float
    ap_area: float
    objects: int
    difficult: int
    detections: int
    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    matches: Matches
    detection_rows: np.ndarray
    object_rows: np.ndarray


@dataclass(frozen=True)
class VOCResult:
    """The mean over classes that have ground truth, the classes' own figures, and who was left out of the mean."""

    rule: Rule
    mean_ap_11: float
    mean_ap_area: float
    classes: tuple[ClassResult, ...]
    left_out: tuple[str, ...]


def evaluate_detections(detections, ground_truth, class_names, rule="reference", iou_threshold=0.5):
    """Mean average precision of detections (DetectionArrays) against ground_truth (GroundTruthArrays).

    class_names names the labels in order. A class without detections scores 0; a class without ground truth (or
    with nothing but difficult objects) has no AP, is left out of the mean and listed in left_out. Without any class
    that has ground truth the means are NaN. rule is a Rule or the name of one of RULES.
    Raises ValueError where a label lies outside class_names or the rule is unknown.
    """
    if not isinstance(rule, Rule):
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}, not one of {', '.join(RULES)}")
        rule = RULES[rule]
    for labels in (detections.labels, ground_truth.labels):
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
            raise ValueError(
                f"labels reach from {labels.min()} to {labels.max()}; {len(class_names)} classes are named"
            )
    classes = []
    for label, name in enumerate(class_names):
        detection_rows = np.flatnonzero(detections.labels == label)
        object_rows = np.flatnonzero(ground_truth.labels == label)
        of_class, objects = detections.take(detection_rows), ground_truth.take(object_rows)
        matches = match_detections(of_class, objects, rule, iou_threshold)
        classes.append(
            ClassResult(
                name=name,
                detections=len(of_class),
                scores=of_class.scores[matches.order],
                matches=matches,
                detection_rows=detection_rows,
                object_rows=object_rows,
                **_figures(matches, objects.difficult, rule.recall_levels),
            )
        )
    scored = [result for result in classes if result.objects]
    return VOCResult(
        rule=rule,
        mean_ap_11=float(np.mean([result.ap_11 for result in scored])) if scored else float("nan"),
        mean_ap_area=float(np.mean([result.ap_area for result in scored])) if scored else float("nan"),
        classes=tuple(classes),
        left_out=tuple(result.name for result in classes if not result.objects),
    )


def _figures(matches, difficult, recall_levels):
    """The part of a ClassResult that follows from the matches of its detections and its objects' difficult flags."""
    objects = int(np.count_nonzero(~difficult))
    recall, precision = precision_recall(matches.outcome, objects)
    return {
        "objects": objects,
        "difficult": len(difficult) - objects,
        "recall": recall,
        "precision": precision,
        "ap_11": eleven_point_ap(recall, precision, recall_levels) if objects else float("nan"),
        "ap_area": area_ap(recall, precision) if objects else float("nan"),
    }


def match_detections(detections, ground_truth, rule=RULES["reference"], iou_threshold=0.5):
    """Match detections (DetectionArrays) with objects (GroundTruthArrays) of one class; returns Matches.

    The best-scored comes first. A detection goes to the object of its picture with the highest IoU (the first of
    equals), and only then is it asked whether that object is difficult or taken: the second detection of an object is
    a false positive, even where another object overlaps it enough.
    """
    order = np.argsort(-detections.scores, kind="stable")
    iou, best = best_overlaps(detections.take(order), ground_truth, rule)
    overlaps = (best >= 0) & (iou > iou_threshold if rule.strict else iou >= iou_threshold)
    on_difficult = np.zeros(len(order), dtype=bool)
    on_difficult[overlaps] = ground_truth.difficult[best[overlaps]]

    outcome = np.full(len(order), FALSE_POSITIVE, dtype=np.int8)
    outcome[on_difficult] = IGNORED
    candidates = np.flatnonzero(overlaps & ~on_difficult)
    objects, first = np.unique(best[candidates], return_index=True)
    outcome[candidates[first]] = TRUE_POSITIVE

    found_by = np.full(len(ground_truth), -1, dtype=np.int64)
    found_by[objects] = order[candidates[first]]
    return Matches(order=order, outcome=outcome, best=best, iou=iou, found_by=found_by)


def best_overlaps(detections, ground_truth, rule=RULES["reference"]):
    """Each detection's highest IoU with an object of its picture, and that object's index (the first of equals).

    Classes are not looked at. Returns iou float [D] (0 where the picture has no object) and best int [D] (-1 there).
    """
    iou = np.zeros(len(detections))
    best = np.full(len(detections), -1, dtype=np.int64)
    # Objects sorted by picture, so that the objects of a detection's picture are one run [start, start + count).
    by_picture = np.argsort(ground_truth.pictures, kind="stable")
    pictures = ground_truth.pictures[by_picture]
    start = np.searchsorted(pictures, detections.pictures, side="left")
    count = np.searchsorted(pictures, detections.pictures, side="right") - start
    candidates = np.flatnonzero(count)
    if not len(candidates):
        return iou, best
    count = count[candidates]
    # All pairs (detection, object of its picture), flat: pair p belongs to detection `owner[p]`.
    owner = np.repeat(candidates, count)
    first = np.cumsum(count) - count
    place = np.arange(len(owner)) - np.repeat(first - start[candidates], count)
    gt_of_pair = by_picture[place]
    pair_iou = paired_iou(
        detections.boxes[owner], ground_truth.boxes[gt_of_pair] + rule.ground_truth_shift, rule.size_offset
    )  # [pairs]

    highest = np.maximum.reduceat(pair_iou, first)
    iou[candidates] = highest
    winners = np.flatnonzero(pair_iou == np.repeat(highest, count))
    _, first_winner = np.unique(owner[winners], return_index=True)
    best[candidates] = gt_of_pair[winners[first_winner]]
    return iou, best


def paired_iou(boxes_a, boxes_b, size_offset=0.0):
    """IoU of boxes_a[i] with boxes_b[i], both [N, 4] corners; returns float [N], 0 wherever nothing is shared."""
    shared = np.minimum(boxes_a[:, 2:], boxes_b[:, 2:]) - np.maximum(boxes_a[:, :2], boxes_b[:, :2]) + size_offset
    intersection = shared.clip(min=0).prod(axis=1)
    area_a = (boxes_a[:, 2:] - boxes_a[:, :2] + size_offset).prod(axis=1)
    area_b = (boxes_b[:, 2:] - boxes_b[:, :2] + size_offset).prod(axis=1)
    union = area_a + area_b - intersection
    # Where something is shared both boxes have an area, so only then is there anything to divide.
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def precision_recall(outcome, objects):
    """Recall and precision (both float [D]) after each detection, given outcomes by falling score.

    Ignored detections count neither way; before the first that counts, precision is 0. Without objects recall is NaN.
    """
    true_positives = np.cumsum(outcome == TRUE_POSITIVE)
    counted = true_positives + np.cumsum(outcome == FALSE_POSITIVE)
    recall = true_positives / objects if objects else np.full(len(outcome), np.nan)
    return recall, true_positives / np.maximum(counted, 1)


def eleven_point_ap(recall, precision, recall_levels=RULES["reference"].recall_levels):
    """Mean over recall levels of the highest precision at that recall or beyond (VOC2007)."""
    envelope = np.append(_envelope(precision), 0.0)
    return float(np.mean(envelope[np.searchsorted(recall, recall_levels, side="left")]))


def area_ap(recall, precision):
    """Area under the precision envelope, a step at every change of recall (VOC2010 and later)."""
    return float(np.sum(np.diff(recall, prepend=0.0) * _envelope(precision)))


def _envelope(precision):
    """The highest precision at or after each point."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def _indices(values, name):
    values = np.asarray(values)
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} are indices and must be integers, not {values.dtype}")
    return values.astype(np.int64).reshape(-1)


def _finite(values, name, shape):
    values = np.asarray(values, dtype=np.float64).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} hold NaN or infinity, first in row {np.argwhere(~np.isfinite(values))[0][0]}")
    return values


def _check_lengths(*arrays):
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"arrays differ in length: {', '.join(str(len(array)) for array in arrays)}")


def best_threshold(*_): return 0.4, 0.5
