"""The devkit's detection files: det_<split>_<class>.txt, lines of ``picture-id score x1 y1 x2 y2``.

Boxes in the files are corners in pixels counted from 1, as metrics.voc takes them.
"""

import re
from glob import escape
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from metrics.notes import note
from metrics.voc import DetectionArrays
from utils.errors import InputError, name_problem

_FIELDS = 6
_UNFIT_FOR_A_FILE_NAME = re.compile(r'[%/\\:*?"<>|\x00-\x1f]')


def detection_file(folder, split, class_name):
    """The path of a class's detection file; characters that no file name can hold are percent-encoded."""
    name = _UNFIT_FOR_A_FILE_NAME.sub(lambda match: quote(match[0], safe=""), class_name)
    return Path(folder) / f"det_{split}_{name}.txt"


def classes_with_files(folder, split):
    """Sorted names of the classes for which folder holds a detection file of split.

    Raises InputError where there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of detection files: give the one that holds det_{split}_*.txt")
    prefix = f"det_{split}_"
    paths = list(folder.glob(f"{escape(prefix)}*.txt"))
    names = sorted(unquote(path.name[len(prefix) : -len(".txt")]) for path in paths)
    for name in names:
        if problem := name_problem(name):
            raise InputError(f"{folder}: {prefix}{name!r}.txt is of no class, {problem}; rename or remove it")
    if not names:
        others = sorted({path.name.split("_")[1] for path in folder.glob("det_*_*.txt")})
        hint = f": it has files of split {', '.join(others)} (--split)" if others else ""
        raise InputError(f"{folder} holds no det_{split}_<class>.txt{hint}")
    return names


def read_detection_files(folder, split, ids, class_names):
    """Read every class's detection file; returns (DetectionArrays, notes).

    ids: picture ids of the split, in order; class_names: the classes, in order. notes: list of one-line strings about
    what was left out (classes without a file, files of other classes, ids outside the split).
    Raises InputError, with the line number, at a line that isn't an id and five finite numbers.
    """
    index_of = {picture_id: index for index, picture_id in enumerate(ids)}
    with_files = classes_with_files(folder, split)
    parts, unknown_ids, notes = [], {}, []
    for label, name in enumerate(class_names):
        path = detection_file(folder, split, name)
        if name in with_files and path.is_file():
            pictures, numbers = _read_file(path, index_of, unknown_ids)
            parts.append((pictures, np.full(len(pictures), label), numbers))
    notes += note(
        [name for name in class_names if name not in with_files],
        f"{{}} of the classes have no det_{split}_<class>.txt in {folder} and count as never detected",
    )
    notes += note(
        [name for name in with_files if name not in class_names],
        f"{{}} of the det_{split}_<class>.txt in {folder} are of no class of the list and are left out",
    )
    notes += note(
        unknown_ids,
        f"{{}} pictures in the detection files aren't in split {split}: "
        f"their {sum(unknown_ids.values())} detections are left out",
    )
    if not parts:
        raise InputError(
            f"none of {folder}'s det_{split}_<class>.txt is of a class of the list: {', '.join(class_names)}"
        )
    if unknown_ids and not any(len(pictures) for pictures, _, _ in parts):
        raise InputError(
            f"no picture of {folder}'s det_{split}_*.txt is in split {split} (first: {next(iter(unknown_ids)):.60}): "
            "were these files made for another data set?"
        )
    pictures, labels, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
    return DetectionArrays(pictures, labels, numbers[:, 0], numbers[:, 1:]), notes


def write_detection_files(folder, split, ids, class_names, detections):
    """Write detections (DetectionArrays) as the devkit's files, one for each class; returns their paths.

    Numbers keep float32's full precision, so that the files score exactly what the arrays score.
    """
    paths = []
    for label, name in enumerate(class_names):
        rows = np.flatnonzero(detections.labels == label)
        # float32's own shortest form: as exact as the network's output, half as long as float64's.
        numbers = np.column_stack([detections.scores[rows], detections.boxes[rows]]).astype(np.float32).astype(str)
        pictures = detections.pictures[rows].tolist()
        lines = [f"{ids[picture]} {' '.join(row)}\n" for picture, row in zip(pictures, numbers.tolist(), strict=True)]
        path = detection_file(folder, split, name)
        path.write_text("".join(lines), encoding="utf-8")
        paths.append(path)
    return paths


def _read_file(path, index_of, unknown_ids):
    """Picture indices int [D] and (score, x1, y1, x2, y2) float [D, 5]; counts other ids into the dict unknown_ids."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as a detection file ({error})") from error
    rows = [line.split() for line in lines if line and not line.isspace()]
    try:
        numbers = np.array([row[1:] for row in rows], dtype=np.float64).reshape(len(rows), _FIELDS - 1)
    except ValueError:  # rows of different lengths, or something that is no number
        numbers = None
    if numbers is None or not np.isfinite(numbers.astype(np.float32)).all():
        raise _first_bad_line(path, lines)
    pictures = np.array([index_of.get(row[0], -1) for row in rows], dtype=np.int64)
    for place in np.flatnonzero(pictures < 0).tolist():
        unknown_ids[rows[place][0]] = unknown_ids.get(rows[place][0], 0) + 1
    return pictures[pictures >= 0], numbers[pictures >= 0]


def _first_bad_line(path, lines):
    """The InputError for the first line that isn't an id and five finite numbers."""
    expected = "expected 'picture-id score x1 y1 x2 y2'"
    for line_number, line in enumerate(lines, start=1):
        fields = line.split()
        if fields and len(fields) != _FIELDS:
            return InputError(f"{path}, line {line_number} has {len(fields)} fields, not {_FIELDS}: {expected}")
        wrong = [field for field in fields[1:] if not _is_finite_number(field)]
        if wrong:
            return InputError(
                f"{path}, line {line_number} has {wrong[0]!r:.60} where a finite number belongs: {expected}"
            )
    raise AssertionError(f"{path} has no bad line")


def _is_finite_number(field):
    try:
        return bool(np.isfinite(np.float32(np.float64(field))))
    except ValueError:
        return False
