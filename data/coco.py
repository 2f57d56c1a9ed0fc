"""COCO: class names, the instances JSON, and the data set.

Category ids, names and their order come from the JSON, so any data set in COCO's format works.
"""

import json
import os
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

from utils.errors import InputError, name_problem

from .config import HOME
from .voc0712 import MAX_COORDINATE, VOCDetection

COCO_ROOT = f"{HOME}/data/coco/"  # scripts append to it
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of COCO's category ids 1 to 90


@dataclass(frozen=True)
class COCOAnnotations:
    """The checked contents of an instances JSON."""

    path: Path
    content: dict  # the JSON itself
    images: dict  # {image id: its entry}
    objects: dict  # {image id: list of its annotation entries}
    category_ids: tuple  # increasing
    class_names: tuple[str, ...]  # of the categories


def read_coco_annotations(path):
    """Read an instances JSON: a COCOAnnotations.

    Raises:
        InputError: the file is missing or not an instances JSON, a name is invalid, two categories have the same name,
            or an annotation has an unlisted image or category, or no box of four numbers.
    """
    path = Path(path)
    if not path.is_file():
        remedy = "name COCO's folder with --dataset_root, or download it with data/scripts/COCO2017.sh (20 GB)"
        if splits := sorted(other.stem.removeprefix("instances_") for other in path.parent.glob("instances_*.json")):
            remedy = f"choose another split, found: {', '.join(splits[:10])} (train2017 has the images of trainval35k)"
        raise InputError(f"{path}: no such file; {remedy}")
    content = read_json(path, "COCO instances JSON")
    try:
        images = {image["id"]: image for image in content["images"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        objects = {image_id: [] for image_id in images}
        _check_ids_and_names(images, names)
        for index, entry in enumerate(content["annotations"]):
            if entry["image_id"] not in images:
                raise ValueError(f"annotation {index} has the unlisted image {entry['image_id']!r:.60}")
            if entry["category_id"] not in names:
                raise ValueError(f"annotation {index} has the unlisted category {entry['category_id']!r:.60}")
            if not _is_box(entry["bbox"]):
                raise ValueError(f"annotation {index} has bbox {entry['bbox']!r:.100}, expected four finite numbers")
            objects[entry["image_id"]].append(entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: not a COCO instances JSON ({str(reason)[:300]})") from error
    category_ids = tuple(sorted(names))
    class_names = tuple(names[category_id] for category_id in category_ids)
    return COCOAnnotations(path, content, images, objects, category_ids, class_names)


def read_json(path, kind):
    """Parse a JSON file. Raises InputError if it can't be read; `kind` says what the file should be."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InputError(f"{path}: not a {kind} ({reason})") from error


def _check_ids_and_names(images, names):
    """Raise ValueError unless all ids can be sorted, and all names are valid and unique."""
    for kind, ids in (("image", images), ("category", names)):
        types = {type(entry) for entry in ids}
        if len(types) > 1 or types - {int, str}:
            raise ValueError(f"the {kind} ids are neither all integers nor all text")
        for entry in ids:
            if isinstance(entry, str) and (problem := name_problem(entry)):
                raise ValueError(f"the {kind} id {entry!r:.60} is invalid, {problem}")
    id_of = {}
    for category_id, name in names.items():
        if problem := name_problem(name):
            raise ValueError(f"the name of category {category_id} is invalid, {problem}")
        if id_of.setdefault(name, category_id) != category_id:
            raise ValueError(f"categories {id_of[name]} and {category_id} have the same name {name!r}; rename one")
    for image_id, image in images.items():
        if problem := name_problem(image["file_name"], max_length=1000):
            raise ValueError(f"the file_name of image {image_id} is invalid, {problem}")


def _is_box(values):
    if not isinstance(values, list) or len(values) != 4:
        return False
    return all(type(value) in (int, float) and abs(value) <= MAX_COORDINATE for value in values)


def get_label_map(label_file):
    """Read a label map of ssd.pytorch (lines such as "90,80,toothbrush") as {category id: label from 1}.

    Raises InputError if the file can't be read, or a line does not start with two numbers.
    """
    try:
        lines = Path(label_file).read_text(encoding="utf-8").splitlines()
        rows = [line.split(",") for line in lines if line.strip()]
        return {int(row[0]): int(row[1]) for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{label_file}: not a label map, lines of category id, label and name ({error})") from error


class COCOAnnotationTransform:
    """Turn COCO annotation entries into rows of boxes and labels.

    Args:
        category_index: {category id: label from 0}, or the path of a label map (see `get_label_map`). If None, labels
            follow COCO_CLASSES, or in a COCODetection the categories of its JSON.
    """

    def __init__(self, category_index=None):
        if isinstance(category_index, str | os.PathLike):
            category_index = {key: label - 1 for key, label in get_label_map(category_index).items()}
        self.category_index = category_index

    def __call__(self, target, width, height):
        """Return a list of [x1, y1, x2, y2, label], corners as fractions of the image.

        Crowds and boxes without area are left out. Raises InputError if a category is not in the label map.

        Args:
            target: list of annotation entries.
            width, height: of the image in pixels.
        """
        label_of = _COCO_INDEX if self.category_index is None else self.category_index
        rows = []
        for entry in target:
            x, y, w, h = entry["bbox"]
            if entry["category_id"] not in label_of:
                raise InputError(f"category {entry['category_id']} is not in the label map; add it")
            if w > 0 and h > 0 and not entry.get("iscrowd"):
                corners = (x / width, y / height, (x + w) / width, (y + h) / height)
                rows.append([*corners, label_of[entry["category_id"]]])
        return rows


_COCO_INDEX = {key: label for label, key in enumerate(key for key in range(1, 91) if key not in _UNUSED_IDS)}

_COCO_ID = {COCO_CLASSES[label]: key for key, label in _COCO_INDEX.items()}
_COCO_NAME = {  # VOC classes that have another name in COCO
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def coco_category_id(name):
    """Return COCO's category id of a COCO or VOC class, None for any other name."""
    return _COCO_ID.get(_COCO_NAME.get(name, name))


class COCODetection(VOCDetection):
    """Images and objects of a COCO split; items are those of VOCDetection.

    Args:
        root: the folder that contains annotations/instances_<image_set>.json and images/<image_set>/ (or <image_set>/).
        image_set: such as "trainval35k" or "train2017".
        transform: called as transform(image, boxes, labels), e.g. SSDAugmentation or BaseTransform.
        target_transform: called with an image's annotation entries, its width and height; returns rows.
            COCOAnnotationTransform() if not given.
        dataset_name: for the script's messages.
        keep_empty: keep images without annotations (ssd.pytorch leaves them out).

    Attributes:
        ids: image ids.
        annotations: the COCOAnnotations.

    Raises:
        InputError: the JSON is missing or damaged, or no image is left.
    """

    def __init__(
        self,
        root=COCO_ROOT,
        image_set="trainval35k",
        transform=None,
        target_transform=None,
        dataset_name="MS COCO",
        *,
        keep_empty=False,
    ):
        self.root, self.image_set, self.name = root, image_set, dataset_name
        self.transform = transform
        path = Path(root) / "annotations" / f"instances_{image_set}.json"
        self.annotations = read_coco_annotations(path)
        follows_json = type(target_transform) is COCOAnnotationTransform and target_transform.category_index is None
        if target_transform is None or follows_json:
            index = {key: label for label, key in enumerate(self.annotations.category_ids)}
            target_transform = COCOAnnotationTransform(index)
        self.target_transform = target_transform
        self.ids = [image_id for image_id, entries in self.annotations.objects.items() if entries or keep_empty]
        if not self.ids:
            raise InputError(f"{path}: no image has an annotated object")
        folder = Path(root) / "images" / image_set
        self._image_folder = folder if folder.is_dir() else Path(root) / image_set

    @property
    def class_names(self):
        """Names of the JSON's categories, in the order of the labels."""
        return self.annotations.class_names

    @cached_property
    def coco(self):
        """The split as a pycocotools.coco.COCO."""
        from pycocotools.coco import COCO

        coco = COCO()
        coco.dataset = self.annotations.content
        with redirect_stdout(StringIO()):  # it prints its progress
            coco.createIndex()
        return coco

    def image_path(self, index):
        return self._image_folder / self.annotations.images[self.ids[index]]["file_name"]

    def annotation_path(self, index):
        """Return the path of the JSON, the same for all images."""
        return self.annotations.path

    def pull_anno(self, index):
        """Return the annotation entries of an image as in the JSON."""
        return self.annotations.objects[self.ids[index]]

    def pull_target(self, index, width, height):
        """Return the rows [x1, y1, x2, y2, label] of an image, corners as fractions."""
        return self.target_transform(self.pull_anno(index), width, height)
