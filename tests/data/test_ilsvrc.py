"""ILSVRC DET: the devkit's classes, folders and lists."""

import re

import numpy as np
import pytest
import torch
from checks import refused
from synthetic import make_ilsvrc

from data import ILSVRC_CLASSES, BaseTransform, ILSVRCDetection
from data.ilsvrc import ILSVRC_SYNSETS

DOG, PERSON, ZEBRA = "n02084071", "n00007846", "n02391049"
TRAIN = {
    "ILSVRC2013_train/n02084071/n02084071_1": [(DOG, (11, 21, 61, 71), None), (PERSON, (1, 1, 101, 81), None)],
    "ILSVRC2014_train_0000/ILSVRC2014_train_00000001": [(ZEBRA, (51, 41, 81, 61), None)],
}
VAL = {"ILSVRC2012_val_00000001": [], "ILSVRC2012_val_00000002": [(DOG, (1, 1, 51, 41), None)]}


@pytest.fixture
def root(tmp_path):
    return make_ilsvrc(make_ilsvrc(tmp_path, TRAIN), VAL, "val1")


def test_the_classes_are_the_devkits():
    assert len(ILSVRC_SYNSETS) == len(set(ILSVRC_CLASSES)) == 200
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in ILSVRC_SYNSETS)
    assert sorted(ILSVRC_CLASSES, key=str.lower) == list(ILSVRC_CLASSES)
    assert (ILSVRC_SYNSETS["n02672831"], ILSVRC_SYNSETS[DOG]) == ("accordion", "dog")
    assert (ILSVRC_CLASSES[0], ILSVRC_CLASSES[123], ILSVRC_CLASSES[199]) == ("accordion", "person", "zebra")


def test_the_papers_training_set_is_train_and_val1(root):
    dataset = ILSVRCDetection(root, transform=BaseTransform(300, (104, 117, 123)))
    assert dataset.class_names == ILSVRC_CLASSES
    val1 = [(str(root), f"val/{name}") for name in VAL]
    assert dataset.ids == [(str(root), f"train/{name}") for name in TRAIN] + val1
    assert ILSVRCDetection(root, "val1").ids == val1
    image, target = dataset[0]
    assert (tuple(image.shape), image.dtype) == ((3, 300, 300), torch.float32)
    labels = [ILSVRC_CLASSES.index(name) for name in ("dog", "person")]
    assert np.allclose(target, [[0.1, 0.25, 0.6, 0.875, labels[0]], [0, 0, 1, 1, labels[1]]])
    assert [len(dataset[index][1]) for index in range(4)] == [2, 1, 0, 1]
    assert dataset.image_path(0) == root / "Data/DET/train/ILSVRC2013_train/n02084071/n02084071_1.JPEG"
    assert dataset.annotation_path(3) == root / "Annotations/DET/val/ILSVRC2012_val_00000002.xml"
    assert dataset.pull_anno(1)[1] == [[50, 40, 80, 60, 199]]


def test_images_of_train_without_annotation_are_left_out(root):
    """They show none of the classes. In val, a missing annotation is an error."""
    for path in sorted((root / "Annotations").rglob("*_1.xml")) + sorted((root / "Annotations").rglob("*val_*1.xml")):
        path.unlink()
    dataset = ILSVRCDetection(root)
    assert len(dataset) == 3
    refused(r"val_00000001\.xml", dataset.pull_anno, 1)
    (root / "Annotations" / "DET" / "train").rename(root / "gone")
    refused(r"train\.txt: no listed image has an annotation", ILSVRCDetection, root, "train")


def test_missing_lists_are_explained(root):
    (root / "ImageSets" / "DET" / "val1.txt").unlink()
    refused(r"val1\.txt: no such split; the devkit doesn't contain it: put a list", ILSVRCDetection, root)
    refused(r"val\.txt: no such split; name the folder", ILSVRCDetection, root, "val")
