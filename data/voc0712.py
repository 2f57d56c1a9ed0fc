"""Pascal VOC: annotations, and the data set in the lineage's form.

Any folder in VOC format will do: `<root>/VOC<year>/{Annotations,ImageSets/Main,JPEGImages}` for each (year, split), or
`<root>/{Annotations,ImageSets/Main,JPEGImages}` itself for pairs whose year is "".
"""

import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError

import numpy as np
import torch
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml

from utils.errors import InputError, name_problem
from utils.images import read_bgr

from .config import HOME

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)  # fmt: skip

VOC_ROOT = str(Path(HOME) / "data" / "VOCdevkit")
LARGEST = 1e9  # pixels; a number beyond is no place in any picture, and float32 boxes would lose themselves in it


@dataclass(frozen=True)
class Annotation:
    """The objects of one picture.

    Attributes:
        boxes: float32 [N, 4], (xmin, ymin, xmax, ymax) in pixels as they stand in the file: 1-based, in VOC.
        names: N class names.
        difficult: bool [N].
        width, height: of the picture in pixels; 0 where the file doesn't say.
    """

    boxes: np.ndarray
    names: tuple[str, ...]
    difficult: np.ndarray
    width: int
    height: int


def read_annotation(path):
    """Read a VOC annotation file.

    A missing `difficult` is 0. Boxes come as they stand, degenerate ones too: it is for the reader to judge them.

    Raises:
        InputError: the file is missing or broken, or an object lacks its name or a readable box.
    """
    root = _parse(path)
    boxes, names, difficult = [], [], []
    for number, element in enumerate(root.iterfind("object"), start=1):
        name = " ".join((element.findtext("name") or "").split())
        if not name:
            raise InputError(f"{path}: object {number} has no name; give it one or remove the object")
        if problem := name_problem(name):
            raise InputError(f"{path}: the name of object {number} can't be used, {problem}; rename it")
        names.append(name)
        difficult.append(_number(element, "difficult", path, default=0) != 0)
        corners = [_number(element, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append(corners)
    return Annotation(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        names=tuple(names),
        difficult=np.array(difficult, dtype=bool),
        width=int(_number(root, "size/width", path, default=0)),
        height=int(_number(root, "size/height", path, default=0)),
    )


def _parse(path):
    try:
        return parse_xml(path).getroot()
    except OSError as error:
        raise InputError(f"{path}: can't read the annotation ({error.strerror}); is the data set complete?") from error
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InputError(f"{path}: not a readable VOC annotation ({str(error)[:200]}); repair or remove it") from error


def _number(element, tag, path, default=None):
    text = element.findtext(tag)
    if text is None and default is not None:
        return default
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = np.nan
    if not abs(value) <= LARGEST:
        raise InputError(f"{path}: <{tag.rpartition('/')[2]}> is {text!r:.60}, a number is expected; repair the file")
    return value


class VOCAnnotationTransform:
    """Turn an annotation into rows of boxes and class indices.

    Args:
        class_to_ind: class name -> index from 0; VOC's 20 classes unless given.
        keep_difficult: keep objects marked difficult (the paper's own code does; the lineage doesn't).
    """

    def __init__(self, class_to_ind=None, keep_difficult=False):
        self.class_to_ind = class_to_ind or {name: index for index, name in enumerate(VOC_CLASSES)}
        self.keep_difficult = keep_difficult

    def __call__(self, target, width, height):
        """target: an Annotation, or the XML root element as in the lineage; width, height: of the picture.

        Returns:
            A list of [xmin, ymin, xmax, ymax, class], corners as fractions of the picture.

        Raises:
            InputError: a class isn't in the list.
        """
        annotation = target if isinstance(target, Annotation) else _annotation_of_element(target)
        unknown = sorted(set(annotation.names) - set(self.class_to_ind))
        if unknown:
            raise InputError(
                f"class {', '.join(map(repr, unknown))} isn't in the class list; add it or remove its objects"
            )
        labels = np.array([self.class_to_ind[name] for name in annotation.names], dtype=np.float32)
        corners = (annotation.boxes - 1) / np.array([width, height, width, height], dtype=np.float32)
        rows = np.hstack([corners, labels[:, None]])
        return rows[~annotation.difficult | self.keep_difficult].tolist()


def _annotation_of_element(root):
    boxes = [
        [float(o.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")] for o in root.iter("object")
    ]
    return Annotation(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        names=tuple((o.findtext("name") or "").lower().strip() for o in root.iter("object")),
        difficult=np.array([int(o.findtext("difficult") or 0) != 0 for o in root.iter("object")], dtype=bool),
        width=0,
        height=0,
    )


class VOCDetection(torch.utils.data.Dataset):
    """Pictures and objects of one or several VOC splits.

    Args:
        root: the folder that holds VOC2007, VOC2012, ...
        image_sets: (year, split) pairs, read one after the other.
        transform: called as transform(image, boxes, labels), e.g. SSDAugmentation or BaseTransform.
        target_transform: turns an Annotation into rows; VOCAnnotationTransform() unless given.
        dataset_name: for messages.

    Raises:
        InputError: a split is missing or empty.
    """

    def __init__(
        self,
        root=VOC_ROOT,
        image_sets=(("2007", "trainval"), ("2012", "trainval")),
        transform=None,
        target_transform=None,
        dataset_name="VOC0712",
    ):
        self.root = Path(root)
        self.image_set = tuple(tuple(pair) for pair in image_sets)
        self.transform = transform
        self.target_transform = target_transform or VOCAnnotationTransform()
        self.name = dataset_name
        self.ids = [entry for year, split in self.image_set for entry in read_split(self.root, year, split)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        """(image, target): float32 RGB [3, H, W] as the transform leaves it, and float32 [objects, 5]."""
        image, target, _, _ = self.pull_item(index)
        return image, target

    def pull_item(self, index):
        """(image, target, height, width): as __getitem__, with the size of the picture in the file."""
        image = self.pull_image(index)
        height, width = image.shape[:2]
        target = np.array(self.pull_target(index, width, height), dtype=np.float32).reshape(-1, 5)
        if self.transform is not None:
            image, boxes, labels = self.transform(image, target[:, :4], target[:, 4])
            target = np.hstack([boxes, labels[:, None]]).astype(np.float32)
        image = np.ascontiguousarray(image[:, :, ::-1])  # BGR -> RGB
        return torch.from_numpy(image).permute(2, 0, 1), target, height, width

    def pull_image(self, index):
        """The picture as OpenCV reads it: uint8 BGR [H, W, 3].

        Raises:
            InputError: it is missing or not a readable picture.
        """
        return read_bgr(self.image_path(index))

    def pull_target(self, index, width, height):
        """Rows [x1, y1, x2, y2, class] of one picture, corners as fractions."""
        path = self.annotation_path(index)
        annotation = read_annotation(path)
        try:
            return self.target_transform(annotation, width, height)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def pull_anno(self, index):
        """(image id, rows): the objects of one picture, corners in pixels from 0, as in the lineage."""
        return self.ids[index][1], self.pull_target(index, 1, 1)

    def pull_tensor(self, index):
        """The picture as a tensor with a batch axis: uint8 BGR [1, 3, H, W]."""
        return torch.from_numpy(self.pull_image(index)).permute(2, 0, 1).unsqueeze(0)

    def image_path(self, index):
        """Path of a picture: <id>.jpg, or the file of that name with another ending (.JPG, .png, ...)."""
        folder, name = self.ids[index]
        path = Path(folder) / "JPEGImages" / f"{name}.jpg"
        others = (path.with_suffix(ending) for ending in IMAGE_ENDINGS)
        return next((there for there in (path, *others) if os.path.exists(there)), path)  # noqa: PTH110 (never raises)

    def annotation_path(self, index):
        folder, name = self.ids[index]
        return Path(folder) / "Annotations" / f"{name}.xml"


IMAGE_ENDINGS = (".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".bmp", ".webp")


def read_split(root, year, split):
    """The (folder, picture id) pairs that a split lists.

    Raises:
        InputError: the split's file is missing or empty.
    """
    folder = Path(root) / f"VOC{year}" if year else Path(root)
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        hint = "data/scripts/ has a download script for each VOC year, or name the folder with --dataset_root"
        raise InputError(f"{path}: no such split; {hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't read the split ({error})") from error
    ids = [(str(folder), line.split()[0]) for line in lines if line.strip()]
    if not ids:
        raise InputError(f"{path}: the split lists no pictures")
    for number, (_, name) in enumerate(ids, start=1):
        if problem := name_problem(name):
            raise InputError(f"{path}: entry {number} is no picture's name, {problem}; repair the list")
    return ids
