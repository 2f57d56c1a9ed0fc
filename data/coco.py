"""COCO: class names, the instances JSON, and the data set for training.

Category ids, names and their order come from the JSON alone: any data set in COCO's format works, whatever its classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from utils.errors import InputError, name_problem

from .config import HOME
from .voc0712 import LARGEST, VOCDetection

COCO_ROOT = str(Path(HOME) / "data" / "coco")

# The 80 classes in the order of their category ids (which have gaps: 1 to 90).
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


@dataclass(frozen=True)
class COCOAnnotations:
    """What an instances JSON holds, checked.

    content: the JSON as it is; images: {image id: its entry}; objects: {image id: its annotation entries}, an empty
    list where there is none; category_ids, class_names: the categories by rising id.
    """

    path: Path
    content: dict
    images: dict
    objects: dict
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]

    @property
    def category_index(self):
        """{category id: index of the class}, counted from 0 without a background."""
        return {category_id: index for index, category_id in enumerate(self.category_ids)}


def read_coco_annotations(path):
    """Read an instances JSON; returns COCOAnnotations.

    Raises InputError where the file is missing or no such JSON, a name in it can't be used, or an annotation names a
    picture or a category that the file doesn't list, or has no box of four numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} isn't there: {_remedy(path)}")
    content = read_json(path, "COCO instances JSON")
    try:
        images = {image["id"]: image for image in content["images"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        objects = {image_id: [] for image_id in images}
        _check_names(images, names)
        for place, row in enumerate(content["annotations"]):
            if row["image_id"] not in images:
                raise ValueError(f"annotation {place} is of picture {row['image_id']!r:.60}, which isn't listed")
            if row["category_id"] not in names:
                raise ValueError(f"annotation {place} has category {row['category_id']!r:.60}, which isn't listed")
            if not _are_numbers(row["bbox"], 4):
                raise ValueError(f"annotation {place} has bbox {row['bbox']!r:.100}, not four finite numbers")
            objects[row["image_id"]].append(row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is no COCO instances JSON: {str(reason)[:300]}") from error
    category_ids = tuple(sorted(names))
    class_names = tuple(names[category_id] for category_id in category_ids)
    return COCOAnnotations(path, content, images, objects, category_ids, class_names)


def _remedy(path):
    """What to do about an instances JSON that isn't there: name a split that is, or bring the data."""
    splits = sorted(other.stem.removeprefix("instances_") for other in path.parent.glob("instances_*.json"))
    if splits:
        same = ' (which holds the pictures of "trainval35k")' if "train2017" in splits else ""
        return f"the splits that are there: {', '.join(splits[:10])}{same}"
    return (
        "give the folder that holds annotations/ and images/ (--dataset_root), "
        "or fetch COCO with data/scripts/COCO2017.sh (20 GB)"
    )


def read_json(path, kind):
    """What a JSON file holds. Raises InputError where it can't be read; kind: what it should be, in words."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InputError(f"{path} is no {kind}: it can't be read ({reason})") from error


def _check_names(images, names):
    """Raise ValueError unless ids are of one kind, so that they have an order, and the names can be used."""
    for what, ids in (("picture", images), ("category", names)):
        kinds = {type(entry) for entry in ids}
        if len(kinds) > 1 or kinds - {int, str}:
            raise ValueError(f"the {what} ids are neither all whole numbers nor all text")
        for entry in ids:
            if isinstance(entry, str) and (problem := name_problem(entry)):
                raise ValueError(f"the {what} id {entry!r:.60} can't be used, {problem}")
    for category_id, name in names.items():
        if problem := name_problem(name):
            raise ValueError(f"the name of category {category_id} can't be used, {problem}")
    for image_id, image in images.items():
        if problem := name_problem(image["file_name"], max_length=1000):
            raise ValueError(f"the file_name of picture {image_id} can't be used, {problem}")
        if not _are_numbers([image.get("width", 0), image.get("height", 0)], 2):
            raise ValueError(f"the width and height of picture {image_id} aren't numbers")


def _are_numbers(values, count):
    """Whether JSON gave a list of `count` numbers that can be places or sizes in a picture."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and abs(value) <= LARGEST for value in values)
    )


def find_picture(root, image_set, file_name):
    """The path of a COCO picture: root/images/<set>/ (as in the lineage) where that folder is, else root/<set>/."""
    folder = Path(root) / "images" / image_set
    return (folder if folder.is_dir() else Path(root) / image_set) / file_name


class COCOAnnotationTransform:
    """COCO annotation entries to rows (x1, y1, x2, y2, label), corners as fractions of the picture.

    category_index: {category id: label}, label counted from 0; without it, the data set's own is used, so this can
    be called by itself only with one.
    """

    def __init__(self, category_index=None):
        self.category_index = category_index

    def __call__(self, target, width, height, category_index=None):
        """target: list of annotation entries; width, height in pixels. Returns a list of rows of five numbers.

        Crowds and boxes without any area are left out: neither shows a network one object's box.
        """
        index = self.category_index if category_index is None else category_index
        if index is None:
            raise ValueError("COCOAnnotationTransform needs the category_index of an instances JSON")
        rows = []
        for entry in target:
            x, y, box_width, box_height = entry["bbox"]
            if entry.get("iscrowd") or box_width <= 0 or box_height <= 0:
                continue
            corners = (x / width, y / height, (x + box_width) / width, (y + box_height) / height)
            rows.append([*corners, index[entry["category_id"]]])
        return rows


class COCODetection(VOCDetection):
    """Pictures and objects of one COCO split, in the lineage's form; items are those of VOCDetection.

    Args:
        root: the folder that holds annotations/instances_<image_set>.json and images/<image_set>/ (or <image_set>/).
        image_set: such as "trainval35k", "train2017".
        transform: called as transform(image, boxes, labels), e.g. SSDAugmentation or BaseTransform.
        target_transform: turns annotation entries into rows; COCOAnnotationTransform() unless given.
        dataset_name: for messages.
        keep_empty: keep pictures that nothing is annotated in (the lineage leaves them out).

    `ids` are image ids; `class_names` the JSON's categories, in the order of the labels.

    Raises:
        InputError: the JSON is missing or broken, or no picture is left.
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
        self.root = Path(root)
        self.image_set = image_set
        self.transform = transform
        self.target_transform = target_transform or COCOAnnotationTransform()
        self.name = dataset_name
        path = self.root / "annotations" / f"instances_{image_set}.json"
        self.annotations = read_coco_annotations(path)
        self.class_names = self.annotations.class_names
        self.ids = [image_id for image_id, rows in self.annotations.objects.items() if rows or keep_empty]
        if not self.ids:
            raise InputError(f"{path}: no picture has an annotated object")

    def image_path(self, index):
        """Path of a picture."""
        return find_picture(self.root, self.image_set, self.annotations.images[self.ids[index]]["file_name"])

    def annotation_path(self, index):
        """The one JSON that holds every picture's annotations."""
        return self.annotations.path

    def pull_anno(self, index):
        """The annotation entries of a picture, as they stand in the JSON."""
        return self.annotations.objects[self.ids[index]]

    def pull_target(self, index, width, height):
        """Rows [x1, y1, x2, y2, class] of one picture, corners as fractions."""
        entries = self.pull_anno(index)
        if isinstance(self.target_transform, COCOAnnotationTransform) and self.target_transform.category_index is None:
            return self.target_transform(entries, width, height, self.annotations.category_index)
        return self.target_transform(entries, width, height)
