"""COCO's twelve figures, by pycocotools, on any data set: pure functions on arrays and JSON-like dicts, no files.

Boxes here are corners in pixels counted from 1 (as in metrics.voc) and become COCO's (x, y, width, height) counted
from 0 on the way into pycocotools.
"""

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

FIGURES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


@dataclass(frozen=True)
class COCOResult:
    """figures: {name: value} in the order of FIGURES; class_ap, class_ap50: {name: value}; NaN: nothing annotated."""

    figures: dict[str, float]
    class_ap: dict[str, float]
    class_ap50: dict[str, float]


def evaluate_coco(annotations, results, category_ids=None, image_ids=None):
    """COCO's figures for results (list of COCO result dicts) against annotations (the dict of an instances JSON).

    results: dicts with image_id, category_id, bbox (x, y, width, height) and score. Categories and pictures outside
    category_ids and image_ids (default: all of the annotations') are left out. Raises ValueError where a result names
    a picture that the annotations don't have.
    """
    # pycocotools tells its progress on stdout and writes into what it is given.
    with redirect_stdout(StringIO()):
        truth = COCO()
        rows = [_complete(number, row) for number, row in enumerate(annotations["annotations"], start=1)]
        truth.dataset = {**annotations, "annotations": rows}
        truth.createIndex()
        strangers = {row["image_id"] for row in results} - set(truth.getImgIds())
        if strangers:
            raise ValueError(f"results name {len(strangers)} pictures that aren't annotated, such as {min(strangers)}")
        evaluation = COCOeval(truth, _load_results(truth, results), "bbox")
        if category_ids is not None:
            evaluation.params.catIds = sorted(category_ids)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    # precision: [IoU thresholds, recalls, classes, areas, detection limits]; -1 where there is no ground truth.
    precision = evaluation.eval["precision"][..., 0, -1]
    return COCOResult(
        figures=dict(zip(FIGURES, map(_figure, evaluation.stats), strict=True)),
        class_ap={
            names[category]: _figure(precision[:, :, place].mean())
            for place, category in enumerate(evaluation.params.catIds)
        },
        class_ap50={
            names[category]: _figure(precision[0, :, place].mean())
            for place, category in enumerate(evaluation.params.catIds)
        },
    )


def annotations_from_arrays(ground_truth, picture_sizes, class_names):
    """The dict of a COCO instances JSON that says what ground_truth (GroundTruthArrays of VOC boxes) says.

    picture_sizes: [(width, height)] of every picture. Pictures, classes and objects are numbered from 1 in their
    order. VOC's corners are inclusive pixels counted from 1, so a box is (xmin - 1, ymin - 1, xmax - xmin + 1,
    ymax - ymin + 1). A difficult object becomes a crowd (iscrowd 1), the one kind that pycocotools counts neither as
    found nor as missed.
    """
    corners = ground_truth.boxes
    boxes = np.column_stack([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1])
    return {
        "images": [
            {"id": number, "width": int(width), "height": int(height)}
            for number, (width, height) in enumerate(picture_sizes, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        "annotations": [
            {
                "id": number,
                "image_id": picture + 1,
                "category_id": label + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(difficult),
            }
            for number, (picture, label, box, difficult) in enumerate(
                zip(
                    ground_truth.pictures.tolist(),
                    ground_truth.labels.tolist(),
                    boxes.tolist(),
                    ground_truth.difficult.tolist(),
                    strict=True,
                ),
                start=1,
            )
        ],
    }


def results_from_arrays(detections, image_ids, category_ids):
    """detections (DetectionArrays) as COCO result dicts; image_ids and category_ids translate the indices."""
    corners = detections.boxes
    boxes = np.column_stack([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2]])
    return [
        {"image_id": image_ids[picture], "category_id": category_ids[label], "bbox": box, "score": score}
        for picture, label, box, score in zip(
            detections.pictures.tolist(),
            detections.labels.tolist(),
            boxes.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]


def _complete(number, row):
    """An annotation with all that pycocotools takes for granted; numbered from 1, as it takes 0 for no object."""
    area = row.get("area")
    if not isinstance(area, int | float):
        area = row["bbox"][2] * row["bbox"][3]
    return {**row, "id": number, "area": area, "iscrowd": int(bool(row.get("iscrowd")))}


def _load_results(truth, results):
    """The results as a COCO object; pycocotools itself fails on an empty list."""
    if results:
        return truth.loadRes([dict(row) for row in results])
    empty = COCO()
    empty.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
    empty.createIndex()
    return empty


def _figure(value):
    """A figure of pycocotools, whose -1 means that there was nothing to measure."""
    return float(value) if value > -1 else float("nan")
