"""Which of a detector's mistakes to look at: each class's most confident false positives and its worst misses."""

from dataclasses import dataclass

import numpy as np

from metrics.voc import FALSE_POSITIVE, best_overlaps, paired_iou

_BARELY = 0.1  # below this IoU a box has nothing to do with an object


@dataclass(frozen=True)
class Mistake:
    """One mistake; boxes are corners in pixels counted from 1.

    missed: a missed object, else a false detection; picture: index; box: float [4], the object or the detection;
    score: of the detection, or the one at which the object was found after all (0: never); reason: in words;
    truth: float [N, 4], objects of the class in the picture; detected: float [M, 4], detections to show beside it.
    """

    missed: bool
    picture: int
    box: np.ndarray
    score: float
    reason: str
    truth: np.ndarray
    detected: np.ndarray


@dataclass(frozen=True)
class ClassMistakes:
    """One class's mistakes, the worst first, and how many there are in all at the threshold."""

    name: str
    false_positives: tuple[Mistake, ...]
    misses: tuple[Mistake, ...]
    false_positive_count: int
    miss_count: int


def find_mistakes(result, detections, ground_truth, threshold=0.6, per_class=6):
    """Each class's worst mistakes, as a list of ClassMistakes in the order of result.classes.

    result: the VOCResult of detections (DetectionArrays) against ground_truth (GroundTruthArrays). False positives
    are taken by falling score, whatever it is. An object counts as missed where no detection of at least threshold
    found it: those never found first, then by rising score, large ones before small ones. Difficult objects can't be
    missed.
    """
    finder = _Finder(result, detections, ground_truth, threshold)
    return [finder.of_class(of_class, per_class) for of_class in result.classes]


class _Finder:
    def __init__(self, result, detections, ground_truth, threshold):
        self.names = [of_class.name for of_class in result.classes]
        self.rule = result.rule
        self.detections = detections
        self.ground_truth = ground_truth
        self.threshold = threshold
        self.confident = detections.take(detections.scores >= threshold)

    def of_class(self, of_class, per_class):
        false_positives = np.flatnonzero(of_class.matches.outcome == FALSE_POSITIVE)
        missed, scores = self._missed(of_class)
        return ClassMistakes(
            name=of_class.name,
            false_positives=tuple(
                self._false_positive(of_class, place) for place in false_positives[:per_class].tolist()
            ),
            misses=tuple(
                self._miss(of_class, row, score)
                for row, score in zip(missed[:per_class].tolist(), scores[:per_class].tolist(), strict=True)
            ),
            false_positive_count=int(np.count_nonzero(of_class.scores[false_positives] >= self.threshold)),
            miss_count=len(missed),
        )

    def _missed(self, of_class):
        """Rows of the missed objects, the worst first, and the scores at which they were found after all (0: never)."""
        found_by = of_class.matches.found_by
        scores = np.zeros(len(found_by))
        scores[found_by >= 0] = self.detections.scores[of_class.detection_rows[found_by[found_by >= 0]]]
        rows = of_class.object_rows
        missed = np.flatnonzero((scores < self.threshold) & ~self.ground_truth.difficult[rows])
        boxes = self.ground_truth.boxes[rows[missed]]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        worst = np.lexsort((-areas, scores[missed]))
        return rows[missed[worst]], scores[missed[worst]]

    def _false_positive(self, of_class, place):
        """The Mistake of the detection at place in the class's falling order."""
        row = of_class.detection_rows[of_class.matches.order[place]]
        detection = self.detections.take([row])
        overlap, nearest = (values[0] for values in best_overlaps(detection, self.ground_truth, self.rule))
        own = of_class.matches.iou[place]
        if own >= 0.5:
            reason = f"second detection of one {of_class.name}"
        elif overlap >= 0.5:
            reason = f"on {_a(self.names[self.ground_truth.labels[nearest]])}"
        elif own >= _BARELY:
            reason = f"badly placed: IoU {own:.2f}"
        else:
            reason = f"no {of_class.name} there"
        picture = int(detection.pictures[0])
        return Mistake(
            missed=False,
            picture=picture,
            box=detection.boxes[0],
            score=float(detection.scores[0]),
            reason=reason,
            truth=self._truth(of_class, picture),
            detected=np.empty((0, 4)),
        )

    def _miss(self, of_class, row, score):
        """The Mistake of the missed object at row of the ground truth."""
        picture, box = int(self.ground_truth.pictures[row]), self.ground_truth.boxes[row]
        nearby = self.confident.take(self.confident.pictures == picture)
        shifted = np.tile(box + self.rule.ground_truth_shift, (len(nearby), 1))
        overlaps = paired_iou(nearby.boxes, shifted, self.rule.size_offset)
        touching = overlaps >= _BARELY
        nearby, overlaps = nearby.take(touching), overlaps[touching]
        reason = f"found only at {score:.2f}" if score > 0 else "never found"
        if len(nearby):
            best = int(np.argmax(overlaps))
            name, best_score = self.names[nearby.labels[best]], nearby.scores[best]
            if name == of_class.name:
                reason += f"; nearest {name} ({best_score:.2f}) has IoU {overlaps[best]:.2f}"
            elif overlaps[best] >= 0.5:
                reason += f"; taken for {_a(name)} ({best_score:.2f})"
        return Mistake(
            missed=True,
            picture=picture,
            box=box,
            score=score,
            reason=reason,
            truth=self._truth(of_class, picture),
            detected=nearby.boxes,
        )

    def _truth(self, of_class, picture):
        """Boxes [N, 4] of the class's objects in a picture."""
        rows = of_class.object_rows
        return self.ground_truth.boxes[rows[self.ground_truth.pictures[rows] == picture]]


def _a(name):
    """A class's name with its article."""
    return f"{'an' if name[:1].lower() in set('aeiou') else 'a'} {name}"
