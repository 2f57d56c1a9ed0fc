"""COCO's twelve figures, computed by pycocotools: pure functions on arrays and JSON-like dicts.

Boxes are corners in pixels counted from 1, as in metrics.voc; COCO's are (x, y, width, height) counted from 0.
"""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

FIGURES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def evaluate_coco(annotations, results, category_ids, image_ids):
    """Return (COCO's figures by name, {class name: {"AP": ..., "AP50": ...}}); NaN without ground truth.

    annotations: content of an instances JSON; id, area and iscrowd of an annotation may be missing. results: list of
    dicts with image_id, category_id, bbox and score. Only the given categories and images are scored.
    """
    with redirect_stdout(StringIO()):  # pycocotools prints its progress
        truth = COCO()
        rows = [_complete(number, row) for number, row in enumerate(annotations["annotations"], start=1)]
        truth.dataset = {**annotations, "annotations": rows}
        truth.createIndex()
        # pycocotools fails on an empty list of results, but not on an empty COCO.
        found = truth.loadRes([dict(row) for row in results]) if results else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.catIds, evaluation.params.imgIds = sorted(category_ids), sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    name_of = {category["id"]: category["name"] for category in annotations["categories"]}
    # [IoU thresholds, recall levels, classes, areas, detection limits]; -1 without ground truth.
    precision = evaluation.eval["precision"][..., 0, -1]
    classes = {
        name_of[key]: {"AP": _figure(precision[:, :, place].mean()), "AP50": _figure(precision[0, :, place].mean())}
        for place, key in enumerate(evaluation.params.catIds)
    }
    return dict(zip(FIGURES, map(_figure, evaluation.stats), strict=True)), classes


def annotations_from_arrays(ground_truth, image_ids, class_names):
    """Convert GroundTruthArrays of VOC boxes to the content of an instances JSON. The category ids are the names.

    VOC's corners are pixels that belong to the object, so a box is (xmin - 1, ymin - 1, xmax - xmin + 1,
    ymax - ymin + 1). A difficult object becomes a crowd, because COCO does not count crowds.
    """
    corners = ground_truth.boxes
    boxes = np.column_stack([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1])
    columns = (ground_truth.images, ground_truth.labels, boxes, ground_truth.difficult)
    return {
        "images": [{"id": image_id} for image_id in image_ids],
        "categories": [{"id": name, "name": name} for name in class_names],
        "annotations": [
            {"image_id": image_ids[image], "category_id": class_names[label], "bbox": box, "iscrowd": int(difficult)}
            for image, label, box, difficult in zip(*(column.tolist() for column in columns), strict=True)
        ],
    }


def results_from_arrays(detections, image_ids, category_ids):
    """Convert DetectionArrays to COCO result dicts. Classes with None in `category_ids` are left out."""
    corners = detections.boxes
    boxes = np.column_stack([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2]])
    columns = (detections.images, detections.labels, boxes, detections.scores)
    return [
        {"image_id": image_ids[image], "category_id": category_ids[label], "bbox": box, "score": score}
        for image, label, box, score in zip(*(column.tolist() for column in columns), strict=True)
        if category_ids[label] is not None
    ]


def _complete(number, row):
    """Add the fields that pycocotools needs. Ids count from 1, because pycocotools treats id 0 as no object."""
    area = row["area"] if isinstance(row.get("area"), int | float) else row["bbox"][2] * row["bbox"][3]
    return {**row, "id": number, "area": area, "iscrowd": int(bool(row.get("iscrowd")))}


def _figure(value):
    """Convert a figure of pycocotools; -1 (no ground truth) becomes NaN."""
    return float(value) if value > -1 else float("nan")
