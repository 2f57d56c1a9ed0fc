"""Which pictures a run is trained on, and with which classes and priors."""

from contextlib import suppress
from pathlib import Path

from data.coco import COCO_ROOT, COCODetection
from data.config import coco, coco512, voc, voc512
from data.voc0712 import VOC_CLASSES, VOC_ROOT, VOCAnnotationTransform, VOCDetection, read_annotation
from utils.errors import InputError

CONFIGS = {("VOC", 300): voc, ("VOC", 512): voc512, ("COCO", 300): coco, ("COCO", 512): coco512}


def training_pictures(dataset, root, splits, classes, keep_difficult, size):
    """The training pictures of the command line's choice.

    Args:
        dataset: "VOC", "COCO", or a folder in VOC format.
        root: folder of the VOC years, or of COCO; None: the default one.
        splits: names such as "2007_trainval" (a year of VOC<year>) or "train" (of a folder); None: the usual ones.
        classes: class names; None: VOC's, COCO's, or those found in the folder's annotations.
        keep_difficult: train on difficult objects too.
        size: of the input, 300 or 512.

    Returns:
        (pictures, class_names, config).

    Raises:
        InputError: data set, split or annotations are missing.
    """
    if dataset == "COCO":
        if splits and len(splits) > 1:
            raise InputError("--train_split: COCO takes one split, such as train2017")
        pictures = COCODetection(root or COCO_ROOT, splits[0] if splits else "train2017")
        return pictures, pictures.class_names, CONFIGS["COCO", size]
    if dataset == "VOC":
        root, splits = root or VOC_ROOT, splits or ("2007_trainval", "2012_trainval")
        classes = classes or VOC_CLASSES
    elif Path(dataset).is_dir():
        root, splits = dataset, splits or ("train",)
    else:
        raise InputError(f"--dataset {dataset}: neither VOC nor COCO nor a folder")
    image_sets = [split_pair(name) for name in splits]
    pictures = VOCDetection(root, image_sets, dataset_name=str(dataset))
    classes = tuple(classes or classes_of(pictures))
    pictures.target_transform = VOCAnnotationTransform({name: i for i, name in enumerate(classes)}, keep_difficult)
    return pictures, classes, CONFIGS["VOC", size]


def split_pair(name):
    """("2007", "trainval") of "2007_trainval"; ("", "train") of "train"."""
    year, _, split = name.rpartition("_")
    return (year, split) if year.isdigit() else ("", name)


def classes_of(pictures):
    """The class names that occur in the annotations, sorted; broken ones are passed over, the check counts them."""
    names = set()
    for index in range(len(pictures)):
        with suppress(InputError):
            names.update(read_annotation(pictures.annotation_path(index)).names)
    return sorted(names)
