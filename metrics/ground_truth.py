"""The data sets that eval.py scores on, as arrays: VOC, COCO, ILSVRC DET, or a folder in VOC format."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.coco import COCO_ROOT, COCOAnnotations, COCODetection
from data.ilsvrc import ILSVRC_ROOT, ILSVRC_SYNSETS, ILSVRCDetection
from data.voc0712 import VOC_ROOT, VOCDetection, known_name, read_annotation
from metrics.voc import GroundTruthArrays
from utils.errors import InputError, count, printable


@dataclass(frozen=True)
class EvaluationSet:
    """The images of a split and their objects."""

    title: str  # as printed, such as "VOC2007 test"
    split: str  # as in det_<split>_<class>.txt
    folder: Path  # of the data
    ids: tuple  # names of the images; for COCO the JSON's ids
    paths: tuple[Path, ...]  # image files; empty if not requested
    class_names: tuple[str, ...]  # annotated classes, sorted; for COCO the JSON's categories
    objects: GroundTruthArrays  # labels index class_names
    coco: COCOAnnotations | None  # None for other data
    notes: tuple[str, ...]  # a line for each kind of data that was left out

    def category_ids(self, class_names):
        """Return the classes' COCO category ids (None for one that the JSON lacks), or the names for other data."""
        if self.coco is None:
            return list(class_names)
        id_of = dict(zip(self.coco.class_names, self.coco.category_ids, strict=True))
        return [id_of.get(name) for name in class_names]

    def ground_truth(self, class_names):
        """Return (GroundTruthArrays of these classes, notes about other objects); labels index `class_names`.

        In VOC's format, unknown names are tried in lower case (see `known_name`).
        Raises InputError if there are no objects of these classes, or difficult ones only.
        """
        label_of = {name: label for label, name in enumerate(class_names)}
        names = self.class_names if self.coco else [known_name(name, label_of) for name in self.class_names]
        labels = np.array([label_of.get(name, -1) for name in names], np.int64)[self.objects.labels]
        known = labels >= 0
        if not (known & ~self.objects.difficult).any():
            what = "only difficult objects" if known.any() else "no objects"
            annotated = _first(self.class_names) or "nothing"
            raise InputError(f"{self.title}: {what} of {_first(class_names)}; annotated: {annotated}")
        counts = Counter(self.class_names[label] for label in self.objects.labels[~known].tolist())
        others = [f"{name} ({number})" for name, number in counts.most_common()]
        notes = note("left out the objects of {} outside the class list", "class name", others)
        return replace(self.objects.take(known), labels=labels[known]), notes


def open_evaluation_set(dataset, root=None, split=None, images=True):
    """Read the ground truth of a split as an EvaluationSet.

    Args:
        dataset: "VOC", "COCO", "ILSVRC", or a folder in VOC format.
        root: folder of the data (default: ~/data/VOCdevkit, ~/data/coco or ~/data/ILSVRC).
        split: such as "test" or "2012_val"; the defaults are 2007_test, val2017, val2 (else val) and val (else test).
        images: whether the image files are needed, too.

    Raises:
        InputError: the data is missing or invalid, or no image is left to score.
    """
    if dataset == "COCO":
        split = split or "val2017"
        data = COCODetection(Path(root or COCO_ROOT).expanduser(), split, keep_empty=True)
        return _open(data, f"COCO {split}", split, images)
    if dataset == "ILSVRC":
        folder = Path(root or ILSVRC_ROOT).expanduser()
        split = split or _first_split(folder / "ImageSets" / "DET", "val2", "val")
        return _open(ILSVRCDetection(folder, split), f"ILSVRC DET {split}", split, images)
    if dataset == "VOC":
        year, _, name = (split or "2007_test").rpartition("_")
        year, split = (year, name) if year.isdigit() else ("2007", split)
        folder = Path(root or VOC_ROOT).expanduser()
        return _open(VOCDetection(folder, [(year, split)]), f"VOC{year} {split}", split, images)
    folder = Path(dataset).expanduser()
    if not (folder / "Annotations").is_dir():
        raise InputError(f"--dataset {dataset}: neither VOC, COCO, ILSVRC nor a folder that contains Annotations/")
    split = split or _first_split(folder / "ImageSets" / "Main", "val", "test")
    return _open(VOCDetection(folder, [("", split)]), f"{folder.resolve().name} {split}", split, images)


def _first_split(folder, preferred, other):
    return preferred if (folder / f"{preferred}.txt").is_file() else other


def _open(data, title, split, with_images):
    """Read the EvaluationSet of a data set. An image that is listed twice is scored once."""
    coco = data.annotations if isinstance(data, COCODetection) else None
    annotations = [data.annotation_path(index) for index in range(len(data.ids))]
    names = data.ids if coco else [name for _, name in data.ids]
    if isinstance(data, ILSVRCDetection):  # without train/ or val/
        names = [name.rpartition("/")[2] for name in names]
    index_of = {}
    for index, name in enumerate(names):
        index_of.setdefault(name, index)
    notes = _leave_out(index_of, annotations.__getitem__, f"of split {split} without annotation")
    if with_images:
        notes += _leave_out(index_of, data.image_path, f"of split {split} without image file")
    if not index_of:
        raise InputError(f"{data.root}: no images to score in split {split}; {'; '.join(notes)}")

    ids, object_names, images, difficult, boxes = tuple(index_of), [], [], [], []
    for image, index in enumerate(index_of.values()):
        names_here, boxes_here, difficult_here = _read_objects(data, index)
        object_names += names_here
        images += [image] * len(names_here)
        difficult += difficult_here
        boxes.append(boxes_here)
    boxes = np.concatenate(boxes)
    valid = (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)
    inverted = [f"{ids[images[row]]} ({object_names[row]})" for row in np.flatnonzero(~valid)]
    notes += note("left out {} with xmin > xmax or ymin > ymax", "object", inverted)
    class_names = tuple(coco.class_names if coco else sorted(set(object_names)))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[name] for name in object_names]
    paths = tuple(Path(data.image_path(index)) for index in index_of.values()) if with_images else ()
    objects = GroundTruthArrays(images, labels, difficult, boxes).take(valid)
    return EvaluationSet(title, split, Path(data.root), ids, paths, class_names, objects, coco, tuple(notes))


def _leave_out(index_of, path_of, text):
    """Remove images with a missing file from {name: index}; return a note about them."""
    missing = [name for name, index in index_of.items() if not os.path.isfile(path_of(index))]  # noqa: PTH113 (never raises)
    for name in missing:
        del index_of[name]
    return note(f"left out {{}} {text}", "image", missing)


def _read_objects(data, index):
    """Return an image's objects: names, boxes float [N, 4] in pixels counted from 1, and which are difficult."""
    if isinstance(data, COCODetection):
        entries = data.annotations.objects[data.ids[index]]
        name_of = dict(zip(data.annotations.category_ids, data.annotations.class_names, strict=True))
        boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        crowds = [bool(entry.get("iscrowd")) for entry in entries]  # detections on crowds are ignored
        return [name_of[entry["category_id"]] for entry in entries], boxes + 1, crowds
    annotation = read_annotation(data.annotation_path(index))
    name_of = ILSVRC_SYNSETS if isinstance(data, ILSVRCDetection) else {}
    return [name_of.get(name, name) for name in annotation.names], annotation.boxes, annotation.difficult.tolist()


def note(text, noun, names):
    """Return a list of one line: `text` with the count of names in place of {}, and the first names; [] without any."""
    text = text.replace("{}", count(len(names), noun), 1)  # not str.format(): it may contain a name with braces
    return [printable(f"{text}: {_first(names)}")] if names else []


def _first(names):
    return ", ".join(str(name)[:100] for name in names[:5]) + (", ..." if len(names) > 5 else "")
