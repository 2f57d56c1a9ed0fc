"""Pascal VOC: annotations, and the data set with the interface of ssd.pytorch.

Any folder in VOC format works: `<root>/VOC<year>/{Annotations,ImageSets/Main,JPEGImages}` for each (year, split), or
`<root>/{Annotations,ImageSets/Main,JPEGImages}` if the year is "".
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError

import numpy as np
import torch
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from utils.errors import InputError, name_problem
from utils.images import IMAGE_SUFFIXES, read_bgr

from .config import HOME

VOC_ROOT = f"{HOME}/data/VOCdevkit/"  # scripts append to it
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

MAX_COORDINATE = 1e9  # pixels; beyond this, float32 is too coarse
_NUMBER = re.compile(r" [ -][01]$")  # after the name, in VOC's lists for one class


@dataclass(frozen=True)
class Annotation:
    """The objects of one image."""

    boxes: np.ndarray  # float32 [N, 4], (xmin, ymin, xmax, ymax) in pixels as in the file: counted from 1 in VOC
    names: tuple[str, ...]  # N class names
    difficult: np.ndarray  # bool [N]


def read_annotation(path, convert=None):
    """Read a VOC annotation file. A missing `difficult` is 0; degenerate boxes are kept.

    Args:
        path: the file.
        convert: called with the XML's root element; its result is returned. By default, that is an Annotation.

    Raises:
        InputError: the file is missing or damaged, or an object lacks its name or a readable box.
    """
    try:
        root = parse(path).getroot()
    except OSError as error:
        raise InputError(f"{path}: can't read the annotation ({error.strerror}); is the data set complete?") from error
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InputError(f"{path}: not a readable VOC annotation ({str(error)[:200]}); repair or remove it") from error
    try:
        return (convert or _parse_annotation)(root)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse_annotation(root):
    boxes, names, difficult = [], [], []
    for number, element in enumerate(root.iterfind("object"), start=1):
        name = " ".join((element.findtext("name") or "").split())
        if problem := name_problem(name):
            raise InputError(f"the name of object {number} is invalid, {problem}; rename or remove the object")
        names.append(name)
        difficult.append(_number(element, "difficult", default=0) != 0)
        boxes.append([_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")])
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Annotation(boxes, tuple(names), np.array(difficult, dtype=bool))


def _number(element, tag, default=None):
    text = element.findtext(tag)
    if text is None and default is not None:
        return default
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = np.nan
    if not abs(value) <= MAX_COORDINATE:
        raise InputError(f"<{tag.rpartition('/')[2]}> is {text!r:.60}, expected a number; repair the file")
    return value


def known_name(name, known):
    """Return a class name, or its lower case if only that one is in `known` (as in ssd.pytorch)."""
    return name.lower() if name not in known and name.lower() in known else name


class VOCAnnotationTransform:
    """Turn an annotation into rows of boxes and labels.

    Args:
        class_to_ind: {class name: label from 0}; VOC's 20 classes if not given.
        keep_difficult: keep objects marked difficult (the paper's code does, ssd.pytorch doesn't).
    """

    def __init__(self, class_to_ind=None, keep_difficult=False):
        self.class_to_ind = class_to_ind or {name: label for label, name in enumerate(VOC_CLASSES)}
        self.keep_difficult = keep_difficult

    def __call__(self, target, width, height):
        """Return a list of [xmin, ymin, xmax, ymax, label], corners as fractions of the image counted from 0.

        Args:
            target: the root element of an annotation's XML, or an Annotation.
            width, height: of the image in pixels; 1 and 1 give corners in pixels.

        Raises:
            InputError: the annotation is invalid, or a class is not in the list.
        """
        annotation = target if isinstance(target, Annotation) else _parse_annotation(target)
        labels = [self.class_to_ind.get(known_name(name, self.class_to_ind)) for name in annotation.names]
        if None in labels:
            names = sorted({repr(name) for name, label in zip(annotation.names, labels, strict=True) if label is None})
            raise InputError(f"class {', '.join(names)} is not in the class list; add it or remove its objects")
        corners = ((annotation.boxes - 1) / np.array([width, height, width, height])).tolist()
        kept = ~annotation.difficult | self.keep_difficult
        return [[*box, label] for box, label, keep in zip(corners, labels, kept, strict=True) if keep]


class VOCDetection(torch.utils.data.Dataset):
    """Images and objects of VOC splits.

    Args:
        root: the folder that contains VOC2007, VOC2012, ...
        image_sets: (year, split) pairs, read one after the other.
        transform: called as transform(image, boxes, labels), e.g. SSDAugmentation or BaseTransform.
        target_transform: called with the annotation's XML root element and the image's width and height; returns rows.
            VOCAnnotationTransform() if not given.
        dataset_name: for the script's messages.

    Attributes:
        ids: (folder, image name) pairs.

    Raises:
        InputError: a split is missing or empty.
    """

    _annopath = "%s/Annotations/%s.xml"  # of an entry of `ids`
    _imgpath = "%s/JPEGImages/%s.jpg"

    def __init__(
        self,
        root=VOC_ROOT,
        image_sets=(("2007", "trainval"), ("2012", "trainval")),
        transform=None,
        target_transform=None,
        dataset_name="VOC0712",
    ):
        self.root, self.image_set, self.name = root, image_sets, dataset_name
        self.transform = transform
        self.target_transform = target_transform or VOCAnnotationTransform()
        self.ids = [entry for image_set in image_sets for entry in self._read_split(image_set)]

    def _read_split(self, image_set):
        """Return the (folder, image name) pairs of a split, (year, name); without a year, the folder is the root.

        Raises InputError if the split's file is missing, damaged or empty.
        """
        year, split = image_set
        folder = Path(self.root) / f"VOC{year}" if year else Path(self.root)
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        remedy = "choose another one"
        if size := {"2007": "0.9 GB", "2012": "2.0 GB"}.get(year):
            remedy = f"name the VOCdevkit folder with --dataset_root, or get it with data/scripts/VOC{year}.sh ({size})"
        return [(str(folder), name) for name in read_image_list(path, remedy)]

    @property
    def class_names(self):
        """Class names in the order of the labels."""
        label_of = getattr(self.target_transform, "class_to_ind", None)
        return tuple(sorted(label_of, key=label_of.get)) if label_of else VOC_CLASSES

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        """Return (image, target) of `pull_item`."""
        return self.pull_item(index)[:2]

    def pull_item(self, index):
        """Return (image, target, height, width); height and width are those of the file.

        With a transform, the image is an RGB tensor [3, H, W] (float32 from this project's transforms), and the target
        is an array [objects, 5]. Without one, as in ssd.pytorch, the image is a uint8 BGR tensor [3, H, W], and the
        target is the result of target_transform.
        """
        image = self.pull_image(index)
        height, width = image.shape[:2]
        target = self.pull_target(index, width, height)
        if self.transform is not None:
            target = np.array(target, dtype=np.float32) if len(target) else np.zeros((0, 5), np.float32)
            image, boxes, labels = self.transform(image, target[:, :4], target[:, 4])
            image = np.ascontiguousarray(image[:, :, ::-1])
            target = np.hstack([boxes, np.expand_dims(labels, 1)])
        return torch.from_numpy(image).permute(2, 0, 1), target, height, width

    def pull_image(self, index):
        """Return the image as uint8 BGR [H, W, 3]. Raises InputError if it is missing or not readable."""
        return read_bgr(self.image_path(index))

    def pull_target(self, index, width, height):
        """Return the rows [x1, y1, x2, y2, label] of an image, corners as fractions."""
        return read_annotation(self.annotation_path(index), lambda root: self.target_transform(root, width, height))

    def pull_anno(self, index):
        """Return (image name, rows [x1, y1, x2, y2, label]), corners in pixels from 0."""
        return self.ids[index][1], self.pull_target(index, 1, 1)

    def pull_tensor(self, index):
        """Return the image as float32 BGR tensor [1, H, W, 3]."""
        return torch.from_numpy(self.pull_image(index)).float().unsqueeze(0)

    def image_path(self, index):
        """Return the path of an image: <name>.jpg (ILSVRC: .JPEG), or an existing file with another image suffix."""
        usual = Path(self._imgpath % self.ids[index])
        others = (usual.with_suffix(form) for suffix in IMAGE_SUFFIXES for form in (suffix, suffix.upper()))
        return next((path for path in (usual, *others) if os.path.exists(path)), usual)  # noqa: PTH110 (never raises)

    def annotation_path(self, index):
        return Path(self._annopath % self.ids[index])


def read_image_list(path, remedy):
    """Return the image names in a split's file. Raises InputError, with `remedy` if it is missing."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        found = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise InputError(f"{path}: no such split; {remedy} (found: {found})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't read the split ({error})") from error
    names = [_NUMBER.sub("", line.strip()) for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: the split lists no images")
    for number, name in enumerate(names, start=1):
        if problem := name_problem(name):
            raise InputError(f"{path}: entry {number} is not an image name, {problem}; repair the list")
    return names
