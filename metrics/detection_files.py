"""Detections in files: VOC's det_<split>_<class>.txt and COCO's results JSON.

Lines of VOC's files are `image-id score x1 y1 x2 y2`, corners in pixels counted from 1 as in metrics.voc. A results
JSON is a list of {image_id, category_id, bbox, score}, bbox (x, y, width, height) counted from 0.
"""

import re
from glob import escape
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from data.coco import read_json
from data.voc0712 import known_name
from metrics.ground_truth import note
from metrics.voc import DetectionArrays
from utils.errors import InputError, count, name_problem
from utils.files import whole_file

_NOT_IN_FILE_NAMES = re.compile(r'[%/\\:*?"<>|\x00-\x1f]')


def detection_file(folder, split, class_name):
    """Return the path of a class's detection file; characters that a file name can't contain are percent-encoded."""
    name = _NOT_IN_FILE_NAMES.sub(lambda match: quote(match[0], safe=""), class_name)
    return Path(folder) / f"det_{split}_{name}.txt"


def classes_with_files(folder, split):
    """Return the sorted names of the classes that have a detection file. Raises InputError if there is none."""
    folder, prefix = Path(folder), f"det_{split}_"
    names = sorted(unquote(path.name[len(prefix) : -len(".txt")]) for path in folder.glob(f"{escape(prefix)}*.txt"))
    for name in names:
        if problem := name_problem(name):
            raise InputError(f"{folder}: {prefix}{name}.txt is not of a class, {problem}; rename or remove it")
    if not names:
        others = sorted({path.name.split("_")[1] for path in folder.glob("det_*_*.txt")})
        hint = f"; it has files of split {', '.join(others[:5])} (--split)" if others else ""
        raise InputError(f"{folder}: no files det_{split}_<class>.txt in this folder{hint}")
    return names


def read_detection_files(folder, split, ids, class_names, any_case=True):
    """Read all detection files of a split with the given image ids and annotated classes.

    With `any_case`, an annotated class without a file is tried in lower case, as in EvaluationSet.ground_truth.

    Returns:
        (sorted names of the classes with annotations or a file, DetectionArrays with labels of these, notes).

    Raises:
        InputError: a line is not an id and five finite numbers, or all files are of other classes or images.
    """
    index_of = {str(image_id): index for index, image_id in enumerate(ids)}
    present = classes_with_files(folder, split)
    if any_case:
        class_names = {known_name(name, present) for name in class_names}
    names = sorted({*class_names, *present})
    if len(names) == len(class_names) + len(present):
        raise InputError(f"{folder}: no det_{split}_<class>.txt of the data set's classes (found {present[0]})")
    image_ids, labels, numbers = [], [], []
    for name in present:
        ids_here, numbers_here = _read_file(detection_file(folder, split, name))
        image_ids += ids_here
        labels += [names.index(name)] * len(ids_here)
        numbers.append(numbers_here)
    numbers = np.concatenate(numbers)
    images = np.array([index_of.get(image_id, -1) for image_id in image_ids], dtype=np.int64)
    unknown_ids = list(dict.fromkeys(image_id for image_id in image_ids if image_id not in index_of))
    if unknown_ids and images.max() < 0:
        raise InputError(f"{folder}: files of another data set; {unknown_ids[0]:.60} is not in split {split}")
    notes = note(f"no det_{split}_<class>.txt for {{}}", "class name", [name for name in names if name not in present])
    notes += note(f"left out the detections on {{}} outside split {split}", "image", unknown_ids)
    return tuple(names), DetectionArrays(images, labels, numbers[:, 0], numbers[:, 1:]).take(images >= 0), notes


def write_detection_files(folder, split, ids, class_names, detections):
    """Write DetectionArrays as one detection file for each class, with the precision of float32; returns the paths."""
    paths = []
    for label, name in enumerate(class_names):
        rows = np.flatnonzero(detections.labels == label)
        numbers = np.column_stack([detections.scores[rows], detections.boxes[rows]]).astype(np.float32).astype(str)
        images = detections.images[rows].tolist()
        lines = [f"{ids[image]} {' '.join(row)}\n" for image, row in zip(images, numbers.tolist(), strict=True)]
        paths.append(detection_file(folder, split, name))
        with whole_file(paths[-1]) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    return paths


def _read_file(path):
    """Return the image ids [D] and (score, x1, y1, x2, y2) float64 [D, 5] of a detection file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as a detection file ({error})") from error
    fields = [line.rsplit(maxsplit=5) for line in lines]  # an image name may contain spaces
    rows = [row for row in fields if row]
    numbers = _as_numbers(rows)
    if numbers is None:
        number = next(n for n, row in enumerate(fields) if row and _as_numbers([row]) is None)
        raise InputError(f"{path}, line {number + 1}: not an image id and five finite numbers: {lines[number]!r:.80}")
    return [row[0] for row in rows], numbers


def _as_numbers(rows):
    """Return fields 2 to 6 of each row as float64 [R, 5], or None if a row is invalid."""
    try:
        numbers = np.array([row[1:] for row in rows], dtype=np.float64).reshape(len(rows), 5)
    except ValueError:
        return None
    return numbers if (np.abs(numbers) < 3e38).all() else None  # float32's range


def read_results(path, image_ids, category_ids):
    """Read a COCO results JSON. Returns DetectionArrays, and notes about results of other images and categories.

    Raises InputError if the file or an entry is invalid, or none is of the given images and categories.
    """
    entries = read_json(path, "COCO results JSON")
    if not isinstance(entries, list):
        raise InputError(f"{path}: not a list of results; is it the annotations' JSON?")
    image_of = {image_id: index for index, image_id in enumerate(image_ids)}
    label_of = {category_id: index for index, category_id in enumerate(category_ids)}
    rows, others = [], []
    for number, entry in enumerate(entries):
        try:
            image, label = image_of.get(entry["image_id"]), label_of.get(entry["category_id"])
            score, x, y, width, height = map(float, (entry["score"], *entry["bbox"]))
            row = (score, x + 1, y + 1, x + width + 1, y + height + 1)
            if not all(abs(value) < 3e38 for value in row):
                raise ValueError("a number is not finite")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}, result {number}: invalid id, bbox or score ({error!r:.200})") from error
        if image is None or label is None:
            others.append(f"image {entry['image_id']} category {entry['category_id']}")
        else:
            rows.append((image, label, *row))
    if others and not rows:
        raise InputError(f"{path}: none of {count(len(entries), 'result')} is of this split's images and categories")
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    notes = note("left out {} of other images or categories", "result", others)
    return DetectionArrays(table[:, 0], table[:, 1], table[:, 2], table[:, 3:]), notes
