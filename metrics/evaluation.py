"""One evaluation from end to end: what is scored, against what, and the figures that come out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.voc0712 import VOC_CLASSES
from metrics.coco import COCOResult, annotations_from_arrays, evaluate_coco, results_from_arrays
from metrics.coco_files import read_results
from metrics.ground_truth import EvaluationSet
from metrics.notes import note
from metrics.voc import PLAIN, RULES, DetectionArrays, GroundTruthArrays, VOCResult, evaluate_detections
from metrics.voc_files import classes_with_files, read_detection_files
from utils.errors import printable


@dataclass(frozen=True)
class Scored:
    """Detections of a network or of files.

    title: as printed; class_names: of the labels; source: what they came from, for results.json; notes: what was left
    out; read_image: from a path to uint8 RGB, where the pictures are at hand.
    """

    title: str
    class_names: tuple[str, ...]
    detections: DetectionArrays
    source: dict
    notes: tuple[str, ...] = ()
    read_image: Callable | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report tells of. voc_results: one for each rule (for COCO data, one under the plain rule)."""

    pictures: EvaluationSet
    scored: Scored
    ground_truth: GroundTruthArrays
    voc_results: tuple[VOCResult, ...]
    coco_result: COCOResult | None
    notes: tuple[str, ...]

    @property
    def title(self):
        """As printed: the files' names, in which nothing steers a terminal or can't be drawn."""
        return printable(f"{self.scored.title} on {self.pictures.title}")


def read_detections(path, dataset, pictures):
    """The Scored of finished detections: a folder of the devkit's files, or for COCO a results JSON.

    dataset: eval.py's --dataset; pictures: the EvaluationSet. The classes are VOC's for VOC, the JSON's for COCO; for
    a folder of one's own, all that are annotated or have a file. Raises InputError.
    """
    path = Path(path).expanduser()
    if pictures.coco and not path.is_dir():
        class_names = pictures.class_names
        detections, notes = read_results(path, pictures.image_ids, pictures.coco.category_ids)
    else:
        with_files = classes_with_files(path, pictures.split)
        if dataset == "VOC":
            class_names = VOC_CLASSES
        elif pictures.coco:
            class_names = pictures.class_names
        else:
            class_names = tuple(sorted({*pictures.class_names, *with_files}))
        detections, notes = read_detection_files(path, pictures.split, pictures.ids, class_names)
    return Scored(
        f"detections in {path.resolve().name}", class_names, detections, {"detections": str(path)}, tuple(notes)
    )


def evaluate(pictures, scored, rule="both", coco_metrics=False):
    """Score detections against the pictures' objects; returns an Evaluation.

    rule: "reference", "devkit" or "both". COCO's figures are computed for COCO data, and where coco_metrics is set.
    """
    ground_truth, notes = pictures.ground_truth(scored.class_names)
    rules = [PLAIN] if pictures.coco else [known for name, known in RULES.items() if rule in (name, "both")]
    coco_result = None
    if pictures.coco or coco_metrics:
        coco_result, more = _evaluate_as_coco(pictures, ground_truth, scored)
        notes = [*notes, *more]
    return Evaluation(
        pictures=pictures,
        scored=scored,
        ground_truth=ground_truth,
        voc_results=tuple(
            evaluate_detections(scored.detections, ground_truth, scored.class_names, known) for known in rules
        ),
        coco_result=coco_result,
        notes=(*pictures.notes, *scored.notes, *notes),
    )


def coco_results(pictures, scored):
    """The detections of a COCO set as COCO result dicts; those of classes that the JSON doesn't know are left out."""
    id_of = dict(zip(pictures.coco.class_names, pictures.coco.category_ids, strict=True))
    category_ids = [id_of.get(name) for name in scored.class_names]
    known = np.array([category_id is not None for category_id in category_ids], dtype=bool)
    detections = scored.detections.take(known[scored.detections.labels])
    return results_from_arrays(detections, pictures.image_ids, category_ids)


def _evaluate_as_coco(pictures, ground_truth, scored):
    if not pictures.coco:
        annotations = annotations_from_arrays(ground_truth, pictures.sizes, scored.class_names)
        image_ids, category_ids = range(1, len(pictures.ids) + 1), range(1, len(scored.class_names) + 1)
        return evaluate_coco(annotations, results_from_arrays(scored.detections, image_ids, category_ids)), []
    known = set(pictures.coco.class_names) & set(scored.class_names)
    notes = note(
        [name for name in scored.class_names if name not in known],
        f"{{}} of the scored classes aren't among {pictures.title}'s categories and are left out",
    )
    category_ids = [
        category_id
        for category_id, name in zip(pictures.coco.category_ids, pictures.coco.class_names, strict=True)
        if name in known
    ]
    result = evaluate_coco(pictures.coco.content, coco_results(pictures, scored), category_ids, pictures.image_ids)
    return result, notes


def detect_images(detector, paths, *, batch_size=8, show_progress=True):
    from metrics.detect import detect_pictures
    from utils.images import read_image
    return detect_pictures(detector, paths, read_image, batch_size=batch_size, show_progress=show_progress)
