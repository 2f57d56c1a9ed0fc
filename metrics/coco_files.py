"""COCO's results format: one JSON list of {image_id, category_id, bbox, score}, bbox (x, y, width, height) from 0."""

import json
from pathlib import Path

import numpy as np

from data.coco import read_json
from metrics.notes import note
from metrics.voc import DetectionArrays
from utils.errors import InputError


def read_results(path, image_ids, category_ids):
    """Read a results JSON; returns (DetectionArrays, notes): boxes as corners in pixels counted from 1.

    image_ids, category_ids: ids in the order of the indices. Entries of other pictures or categories are left out
    and named in notes. Raises InputError, with the entry's number, where one isn't as it should be.
    """
    path = Path(path)
    entries = read_json(path, "COCO results JSON")
    if not isinstance(entries, list):
        raise InputError(f"{path} holds no list of results; is it the annotations' JSON?")
    picture_of = {image_id: index for index, image_id in enumerate(image_ids)}
    label_of = {category_id: index for index, category_id in enumerate(category_ids)}
    rows, strange_pictures, strange_categories = [], {}, {}
    for number, entry in enumerate(entries):
        try:
            image_id, category_id = entry["image_id"], entry["category_id"]
            row = [float(value) for value in (entry["score"], *entry["bbox"])]
            hash((image_id, category_id))  # ids that are lists can't be looked up
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{path}, result {number} isn't image_id, category_id, bbox and score ({error!r:.200})"
            ) from error
        if len(row) != 5 or not np.isfinite(np.float32(row)).all():
            raise InputError(f"{path}, result {number} has score and bbox {row!r:.200}: five numbers are expected")
        if image_id not in picture_of:
            strange_pictures[image_id] = strange_pictures.get(image_id, 0) + 1
        elif category_id not in label_of:
            strange_categories[category_id] = strange_categories.get(category_id, 0) + 1
        else:
            rows.append((picture_of[image_id], label_of[category_id], *row))
    if entries and not rows:
        raise InputError(f"none of the {len(entries)} results in {path} is of this split's pictures and categories")
    notes = note(
        strange_pictures,
        f"{{}} pictures in {path} aren't in this split: their {sum(strange_pictures.values())} results are left out",
    ) + note(
        strange_categories,
        f"{{}} category ids in {path} aren't listed: their {sum(strange_categories.values())} results are left out",
    )
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    boxes = table[:, 3:] + 1
    boxes[:, 2:] += table[:, 3:5]
    return DetectionArrays(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2], boxes), notes


def write_results(path, results):
    """Write result dicts (metrics.coco.results_from_arrays) as a results JSON."""
    Path(path).write_text(json.dumps(results), encoding="utf-8")
