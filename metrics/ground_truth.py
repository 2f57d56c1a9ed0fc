"""The data sets that eval.py scores against: VOC, COCO, or any folder in VOC format, read as arrays."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.coco import COCO_ROOT, COCOAnnotations, find_picture, read_coco_annotations
from data.voc0712 import IMAGE_ENDINGS, VOC_ROOT, read_annotation, read_split
from metrics.notes import note
from metrics.voc import GroundTruthArrays
from utils.errors import InputError


@dataclass(frozen=True)
class EvaluationSet:
    """The pictures of a split and their annotated objects.

    title: as printed; split: as in det_<split>_<class>.txt; folder: where the data lie; ids: names of the pictures;
    paths: their files (None where pictures weren't asked for); sizes: [(width, height)];
    object_names, object_pictures, object_difficult, object_boxes: one entry an object, boxes in pixels counted from 1;
    notes: what was left out; coco, image_ids: the instances JSON and its ids of the pictures, where it is a COCO set.
    """

    title: str
    split: str
    folder: Path
    ids: tuple[str, ...]
    paths: tuple[Path | None, ...]
    sizes: tuple[tuple[int, int], ...]
    object_names: tuple[str, ...]
    object_pictures: np.ndarray
    object_difficult: np.ndarray
    object_boxes: np.ndarray
    notes: tuple[str, ...] = ()
    coco: COCOAnnotations | None = field(default=None, repr=False)
    image_ids: tuple = ()

    @property
    def class_names(self):
        """Sorted names of all annotated classes; for COCO, the categories of the JSON."""
        return self.coco.class_names if self.coco else tuple(sorted(set(self.object_names)))

    def ground_truth(self, class_names):
        """The objects of class_names as GroundTruthArrays, and notes about objects of other classes."""
        label_of = {name: label for label, name in enumerate(class_names)}
        labels = np.array([label_of.get(name, -1) for name in self.object_names], dtype=np.int64)
        known = labels >= 0
        others = Counter(name for name in self.object_names if name not in label_of)
        notes = note(
            [f"{name} ({count})" for name, count in others.most_common()],
            f"{int((~known).sum())} objects are of {{}} classes that aren't in the class list and are left out",
        )
        arrays = GroundTruthArrays(
            self.object_pictures[known], labels[known], self.object_difficult[known], self.object_boxes[known]
        )
        return arrays, notes


def open_evaluation_set(dataset, root=None, split=None, pictures=True):
    """Read the ground truth that eval.py's --dataset, --voc_root and --split name; returns an EvaluationSet.

    dataset: "VOC" (root/VOC2007 and its like; split "test" or "2012_val", by default 2007_test), "COCO" (by default
    val2017) or a folder that holds Annotations/ and ImageSets/Main/ (by default its split val, else test).
    pictures: whether the picture files are needed too. Raises InputError.
    """
    if dataset == "COCO":
        return _open_coco(Path(root or COCO_ROOT).expanduser(), split or "val2017", pictures)
    if dataset == "VOC":
        year, _, name = (split or "2007_test").rpartition("_")
        if not year.isdigit():
            year, name = "2007", split
        folder = Path(root or VOC_ROOT).expanduser() / f"VOC{year}"
        if not folder.is_dir():
            raise InputError(
                f"{folder} isn't there: give the VOCdevkit folder (--voc_root), or fetch the data with "
                "data/scripts/VOC2007.sh (0.9 GB) or data/scripts/VOC2012.sh (2.0 GB)"
            )
        return _open_voc(folder, name, f"VOC{year} {name}", pictures)
    folder = Path(dataset).expanduser()
    if not (folder / "Annotations").is_dir():
        raise InputError(f"--dataset {dataset} is neither VOC nor COCO nor a folder that holds Annotations/")
    if split is None:
        split = "val" if _split_file(folder, "val").is_file() else "test"
    return _open_voc(folder, split, f"{folder.resolve().name} {split}", pictures)


def _open_voc(folder, split, title, pictures):
    ids, notes = _read_split(folder, split)
    stems = {path.stem for path in (folder / "Annotations").glob("*.xml")}
    notes += note(
        [i for i in ids if i not in stems], f"{{}} pictures of split {split} have no annotation and are left out"
    )
    ids = [i for i in ids if i in stems]
    paths = [None] * len(ids)
    if pictures:
        files = _picture_files(folder / "JPEGImages")
        notes += note(
            [i for i in ids if i not in files],
            f"{{}} annotated pictures of split {split} aren't in {folder / 'JPEGImages'} and are left out",
        )
        ids = [i for i in ids if i in files]
        paths = [files[i] for i in ids]
    if not ids:
        raise InputError(f"{_split_file(folder, split)} names no picture that can be scored. {' '.join(notes)}")
    names, owners, difficult, boxes, sizes, inverted = [], [], [], [np.empty((0, 4))], [], []
    for index, picture_id in enumerate(ids):
        annotation = read_annotation(folder / "Annotations" / f"{picture_id}.xml")
        sizes.append((annotation.width, annotation.height))
        right_way = (annotation.boxes[:, :2] <= annotation.boxes[:, 2:]).all(axis=1)
        for place in range(len(right_way)):
            if right_way[place]:
                names.append(annotation.names[place])
                difficult.append(annotation.difficult[place])
                owners.append(index)
            else:
                inverted.append(f"{picture_id} ({annotation.names[place]})")
        boxes.append(annotation.boxes[right_way])
    notes += note(inverted, "{} boxes have xmin > xmax or ymin > ymax and are left out")
    return EvaluationSet(
        title=title,
        split=split,
        folder=folder,
        ids=tuple(ids),
        paths=tuple(paths),
        sizes=tuple(sizes),
        object_names=tuple(names),
        object_pictures=np.array(owners, dtype=np.int64),
        object_difficult=np.array(difficult, dtype=bool),
        object_boxes=np.concatenate(boxes).astype(np.float64),
        notes=tuple(notes),
    )


def _open_coco(root, split, pictures):
    coco = read_coco_annotations(root / "annotations" / f"instances_{split}.json")
    image_ids, notes = sorted(coco.images), []
    paths = {
        image_id: find_picture(root, split, image["file_name"]) if pictures else None
        for image_id, image in coco.images.items()
    }
    if pictures:
        missing = {image_id for image_id in image_ids if not os.path.isfile(paths[image_id])}  # noqa: PTH113 (never raises)
        notes += note(
            [paths[image_id] for image_id in image_ids if image_id in missing],
            f"{{}} annotated pictures of split {split} aren't there and are left out",
        )
        image_ids = [image_id for image_id in image_ids if image_id not in missing]
    if not image_ids:
        raise InputError(f"{coco.path} names no picture that can be scored. {' '.join(notes)}")
    name_of = dict(zip(coco.category_ids, coco.class_names, strict=True))
    rows = [(index, row) for index, image_id in enumerate(image_ids) for row in coco.objects[image_id]]
    boxes = np.array([row["bbox"] for _, row in rows], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return EvaluationSet(
        title=f"COCO {split}",
        split=split,
        folder=root,
        ids=tuple(str(image_id) for image_id in image_ids),
        paths=tuple(paths[image_id] for image_id in image_ids),
        sizes=tuple((coco.images[i].get("width", 0), coco.images[i].get("height", 0)) for i in image_ids),
        object_names=tuple(name_of[row["category_id"]] for _, row in rows),
        object_pictures=np.array([index for index, _ in rows], dtype=np.int64),
        object_difficult=np.array([bool(row.get("iscrowd")) for _, row in rows], dtype=bool),
        object_boxes=boxes + 1,
        notes=tuple(notes),
        coco=coco,
        image_ids=tuple(image_ids),
    )


def _split_file(folder, split):
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _read_split(folder, split):
    """The ids of ImageSets/Main/<split>.txt, each once, and notes."""
    path = _split_file(folder, split)
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.txt"))
        hint = f"{path.parent} has {', '.join(there[:8])} (--split)" if there else f"{path.parent} has no split at all"
        raise InputError(f"{path} isn't there: {hint}")
    counts = Counter(picture_id for _, picture_id in read_split(folder, "", split))
    repeated = [picture_id for picture_id, count in counts.items() if count > 1]
    return list(counts), note(repeated, f"{{}} pictures stand more than once in split {split} and are scored once")


def _picture_files(folder):
    """{stem: path} of the pictures in a folder, whatever the case of their suffix."""
    if not folder.is_dir():
        raise InputError(f"{folder} isn't there: pictures are needed to run a network (--detections needs none)")
    endings = {".jpg", *(ending.lower() for ending in IMAGE_ENDINGS)}
    return {path.stem: path for path in sorted(folder.iterdir(), reverse=True) if path.suffix.lower() in endings}
