"""Average precision as PASCAL VOC defines it: pure functions on arrays.

Boxes are corners in pixels counted from 1, as in VOC's files. A detector's boxes count from 0, so 1 is added to them.
Two rules are in use:

    reference  ground truth minus 1, areas without + 1, IoU > 0.5, recall levels np.arange(0, 1.1, 0.1)
    devkit     no shift, widths and heights + 1, IoU >= 0.5, recall levels k / 10

77.43 was measured with "reference" (Python code derived from Fast R-CNN's); "devkit" is VOCevaldet.m.
"""

from dataclasses import dataclass, fields

import numpy as np

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, -1


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule for computing AP; lengths in pixels. strict: a match needs IoU > 0.5, otherwise IoU >= 0.5."""

    name: str
    ground_truth_shift: float
    size_offset: float
    strict: bool
    recall_levels: np.ndarray


RULES = {
    "reference": Rule("reference", -1.0, 0.0, True, np.arange(0.0, 1.1, 0.1)),
    "devkit": Rule("devkit", 0.0, 1.0, False, np.arange(11) / 10),
}
PLAIN = Rule("plain", 0.0, 0.0, False, np.arange(11) / 10)  # for boxes in fractions of pixels, such as COCO's

_DTYPES = {"images": np.int64, "labels": np.int64, "scores": np.float64, "difficult": bool, "boxes": np.float64}


class _Rows:
    """Arrays with one row per box."""

    def __post_init__(self):
        for field in fields(self):
            values = np.asarray(getattr(self, field.name)).astype(_DTYPES[field.name])
            object.__setattr__(self, field.name, values.reshape(-1, 4) if field.name == "boxes" else values)

    def __len__(self):
        return len(self.boxes)

    def take(self, rows):
        """Return the given rows (indices or a mask)."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class DetectionArrays(_Rows):
    """D detections of any classes in any order."""

    images: np.ndarray  # int64 [D], index of the image
    labels: np.ndarray  # int64 [D], index of the class, without background
    scores: np.ndarray  # float64 [D]
    boxes: np.ndarray  # float64 [D, 4], corners in pixels counted from 1


@dataclass(frozen=True)
class GroundTruthArrays(_Rows):
    """G annotated objects."""

    images: np.ndarray  # int64 [G]
    labels: np.ndarray  # int64 [G]
    difficult: np.ndarray  # bool [G]
    boxes: np.ndarray  # float64 [G, 4], as above


@dataclass(frozen=True)
class ClassResult:
    """Result of one class with D detections; the arrays are sorted by descending score, ties keep their order."""

    name: str
    ap_11: float  # over 11 recall levels (VOC2007); NaN without objects
    ap_area: float  # area (VOC2010 and later); NaN without objects
    objects: int  # without the difficult ones
    difficult: int
    rows: np.ndarray  # int64 [D], rows of the evaluated DetectionArrays
    outcome: np.ndarray  # int8 [D], TRUE_POSITIVE, FALSE_POSITIVE, or IGNORED (on a difficult object)
    best: np.ndarray  # int64 [D], row of the class's object in the image with the highest IoU, -1 if there is none
    iou: np.ndarray  # float64 [D], that IoU
    recall: np.ndarray  # float64 [D], after each detection
    precision: np.ndarray  # float64 [D], after each detection


@dataclass(frozen=True)
class VOCResult:
    """Means over the classes with ground truth (NaN without any), every class, and the classes left out."""

    rule: Rule
    mean_ap_11: float
    mean_ap_area: float
    classes: tuple[ClassResult, ...]
    left_out: tuple[str, ...]


def evaluate_detections(detections, ground_truth, class_names, rule="reference"):
    """Compute the mAP of DetectionArrays against GroundTruthArrays at IoU 0.5. Returns a VOCResult.

    `class_names` names the labels; `rule` is a Rule or its name in RULES. A class without detections scores 0. A class
    without objects, or with difficult ones only, is left out of the mean.
    """
    rule = RULES[rule] if isinstance(rule, str) else rule
    classes = [_evaluate_class(detections, ground_truth, label, name, rule) for label, name in enumerate(class_names)]
    ap = [(result.ap_11, result.ap_area) for result in classes if result.objects]
    mean_ap_11, mean_ap_area = np.mean(ap, axis=0).tolist() if ap else (np.nan, np.nan)
    left_out = tuple(result.name for result in classes if not result.objects)
    return VOCResult(rule, mean_ap_11, mean_ap_area, tuple(classes), left_out)


def _evaluate_class(detections, ground_truth, label, name, rule):
    rows = np.flatnonzero(detections.labels == label)
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
    object_rows = np.flatnonzero(ground_truth.labels == label)
    truth = ground_truth.take(object_rows)
    iou, best = best_overlaps(detections.take(rows), truth, rule)
    outcome = match_detections(iou, best, truth.difficult, rule)
    objects = int(np.count_nonzero(~truth.difficult))
    recall, precision = precision_recall(outcome, objects)
    ap_11 = eleven_point_ap(recall, precision, rule.recall_levels) if objects else np.nan
    ap_area = area_ap(recall, precision) if objects else np.nan
    best, difficult = np.append(object_rows, -1)[best], len(truth) - objects
    return ClassResult(name, ap_11, ap_area, objects, difficult, rows, outcome, best, iou, recall, precision)


def best_threshold(detections, result):
    """Return (threshold, mean F1): the score threshold with the best F1, averaged over the classes with ground truth.

    `result` is what evaluate_detections returned for them. The thresholds are 0.00, 0.01 ... 0.99. A detection counts
    if its score is greater than the threshold in float32, as in Detect. If several thresholds are best, the middle one
    is returned. Without ground truth, F1 is NaN.
    """
    thresholds = np.arange(100) / 100
    f1 = []
    for each in result.classes:
        if each.objects:
            scores = detections.scores[each.rows].astype(np.float32)
            kept = np.searchsorted(-scores, -thresholds.astype(np.float32))  # [100], number of detections
            found = np.append(0, np.cumsum(each.outcome == TRUE_POSITIVE))[kept]
            wrong = np.append(0, np.cumsum(each.outcome == FALSE_POSITIVE))[kept]
            f1.append(2 * found / (found + wrong + each.objects))
    mean = np.mean(f1, axis=0) if f1 else np.full(100, np.nan)
    best = np.flatnonzero(mean == mean.max()) if f1 else [0]
    return float(thresholds[best[len(best) // 2]]), float(mean.max())


def match_detections(iou, best, difficult, rule=RULES["reference"]):
    """Return the outcome (int8 [D]) of one class's detections, given `best_overlaps` by descending score.

    A detection is matched to the object of its image with the highest IoU, even if that object is difficult (bool [G])
    or matched already. The second detection of an object is a false positive, even if it overlaps another object.
    """
    overlaps = (best >= 0) & (iou > 0.5 if rule.strict else iou >= 0.5)
    on_difficult = overlaps & np.append(difficult, False)[best]
    outcome = np.full(len(iou), FALSE_POSITIVE, dtype=np.int8)
    outcome[on_difficult] = IGNORED
    candidates = np.flatnonzero(overlaps & ~on_difficult)
    _, first = np.unique(best[candidates], return_index=True)
    outcome[candidates[first]] = TRUE_POSITIVE
    return outcome


def best_overlaps(detections, ground_truth, rule=RULES["reference"]):
    """Return each detection's highest IoU with an object of its image, of any class, and that object's index.

    iou: float64 [D], 0 if the image has no object; best: int64 [D], the first of equals, -1 if there is none.
    """
    by_image = np.argsort(ground_truth.images, kind="stable")  # the objects of an image are adjacent
    start, end = (np.searchsorted(ground_truth.images[by_image], detections.images, side) for side in ("left", "right"))
    # All pairs (detection, object of its image), flat.
    pairs = end - start
    detection = np.repeat(np.arange(len(detections)), pairs)
    objects = by_image[np.arange(len(detection)) - np.repeat(np.cumsum(pairs) - pairs - start, pairs)]
    shifted = ground_truth.boxes[objects] + rule.ground_truth_shift
    pair_iou = paired_iou(detections.boxes[detection], shifted, rule.size_offset)

    by_iou = np.lexsort((-pair_iou, detection))  # stable
    present, first = np.unique(detection[by_iou], return_index=True)
    iou, best = np.zeros(len(detections)), np.full(len(detections), -1)
    iou[present], best[present] = pair_iou[by_iou[first]], objects[by_iou[first]]
    return iou, best


def paired_iou(boxes_a, boxes_b, size_offset=0.0):
    """Return the IoU of boxes_a[i] with boxes_b[i], both corners [N, 4]: float64 [N]."""
    sides = np.minimum(boxes_a[:, 2:], boxes_b[:, 2:]) - np.maximum(boxes_a[:, :2], boxes_b[:, :2]) + size_offset
    intersection = sides.clip(min=0).prod(axis=1)
    area_a = (boxes_a[:, 2:] - boxes_a[:, :2] + size_offset).prod(axis=1)
    area_b = (boxes_b[:, 2:] - boxes_b[:, :2] + size_offset).prod(axis=1)
    union = area_a + area_b - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def precision_recall(outcome, objects):
    """Return recall and precision (float64 [D]) after each detection, from outcomes by descending score.

    Ignored detections change neither. Precision is 0 before the first counted detection. Recall is NaN without objects.
    """
    true_positives = np.cumsum(outcome == TRUE_POSITIVE)
    counted = true_positives + np.cumsum(outcome == FALSE_POSITIVE)
    recall = true_positives / objects if objects else np.full(len(outcome), np.nan)
    return recall, true_positives / np.maximum(counted, 1)


def eleven_point_ap(recall, precision, recall_levels=RULES["reference"].recall_levels):
    """Return the mean over recall levels of the highest precision at that recall or beyond (VOC2007)."""
    envelope = np.append(_envelope(precision), 0.0)
    return float(np.mean(envelope[np.searchsorted(recall, recall_levels, side="left")]))


def area_ap(recall, precision):
    """Return the area under the precision envelope, a step at every change of recall (VOC2010 and later)."""
    return float(np.sum(np.diff(recall, prepend=0.0) * _envelope(precision)))


def _envelope(precision):
    """Return the highest precision at or after each point."""
    return np.maximum.accumulate(precision[::-1])[::-1]
