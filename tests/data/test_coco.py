"""COCO as a training set: ids and classes from the JSON, the lineage's names, and faults named."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from synthetic import make_coco

from data.coco import COCO_CLASSES, COCOAnnotationTransform, COCODetection, read_coco_annotations
from data.transforms import detection_collate
from utils.errors import InputError

CATEGORIES = {90: "toothbrush", 18: "dog", 1: "person"}
OBJECTS = {
    42: [(18, (10, 20, 30, 40), 0), (90, (50, 40, 25, 20), 0), (1, (0, 0, 100, 80), 1)],
    7: [],
    9: [(1, (0, 0, 50, 80), 0), (1, (5, 5, 0, 9), 0)],
}


@pytest.fixture
def root(tmp_path):
    return make_coco(tmp_path, OBJECTS, CATEGORIES, split="train2017")


def test_there_are_80_classes_and_fire_hydrant_is_one():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert COCO_CLASSES[10] == "fire hydrant"
    assert (COCO_CLASSES[0], COCO_CLASSES[-1]) == ("person", "toothbrush")


def test_items_hold_fractions_and_labels_in_the_order_of_the_ids(root):
    dataset = COCODetection(root, "train2017")
    assert dataset.class_names == ("person", "dog", "toothbrush")
    assert dataset.ids == [42, 9]  # 7 has nothing to learn from
    image, target = dataset[0]
    assert tuple(image.shape) == (3, 80, 100)
    assert target.dtype == np.float32
    assert np.allclose(target, [[0.1, 0.25, 0.4, 0.75, 1], [0.5, 0.5, 0.75, 0.75, 2]])  # the crowd is left out
    assert np.allclose(dataset[1][1], [[0, 0, 0.5, 1, 0]])  # the box without width is left out


def test_pixels_are_those_of_the_file_in_rgb(root):
    dataset = COCODetection(root, "train2017")
    path = root / "images" / "train2017" / "000000000042.jpg"
    assert np.array_equal(dataset.pull_image(0), cv2.imread(str(path)))
    assert np.array_equal(dataset[0][0].permute(1, 2, 0).numpy()[..., ::-1], cv2.imread(str(path)))
    assert dataset.pull_tensor(0).shape == (1, 3, 80, 100)


def test_empty_pictures_stay_on_request_and_collate(root):
    dataset = COCODetection(root, "train2017", keep_empty=True)
    assert dataset.ids == [42, 7, 9]
    images, targets = detection_collate([dataset[0], dataset[1]])
    assert images.shape == (2, 3, 80, 100)
    assert [tuple(target.shape) for target in targets] == [(2, 5), (0, 5)]
    assert isinstance(targets[1], torch.Tensor)


def test_the_official_layout_without_images_folder_is_found(root):
    (root / "images" / "train2017").rename(root / "train2017")
    assert COCODetection(root, "train2017")[0][0].shape == (3, 80, 100)


def test_transform_is_called_with_picture_boxes_and_labels(root):
    def mirror(image, boxes, labels):
        boxes = boxes.copy()
        boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
        return np.ascontiguousarray(image[:, ::-1]), boxes, labels

    plain, mirrored = COCODetection(root, "train2017"), COCODetection(root, "train2017", mirror)
    assert torch.equal(mirrored[0][0], plain[0][0].flip(2))
    assert np.allclose(mirrored[0][1][:, :4], [[0.6, 0.25, 0.9, 0.75], [0.25, 0.5, 0.5, 0.75]])


def test_annotation_transform_with_an_index_of_its_own():
    entries = [{"bbox": [10, 20, 30, 40], "category_id": 18}]
    rows = COCOAnnotationTransform({18: 4})(entries, 100, 80)
    assert np.allclose(rows, [[0.1, 0.25, 0.4, 0.75, 4]])
    assert entries[0]["bbox"] == [10, 20, 30, 40]  # the entry isn't changed
    with pytest.raises(ValueError, match="category_index"):
        COCOAnnotationTransform()(entries, 100, 80)


def test_one_annotation_transform_serves_several_data_sets(tmp_path):
    transform = COCOAnnotationTransform()
    first = COCODetection(make_coco(tmp_path / "1", OBJECTS, CATEGORIES, split="a"), "a", None, transform)
    renamed = {1: "person", 18: "dog", 20: "sheep", 90: "toothbrush"}
    second = COCODetection(make_coco(tmp_path / "2", OBJECTS, renamed, split="a"), "a", None, transform)
    assert [row[4] for row in first[0][1]] == [1, 2]
    assert [row[4] for row in second[0][1]] == [1, 3]
    assert [row[4] for row in first[0][1]] == [1, 2]


def test_pull_anno_gives_the_entries(root):
    assert [row["category_id"] for row in COCODetection(root, "train2017").pull_anno(0)] == [18, 90, 1]


def change(root, **parts):
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image_id": 5, "category_id": 1, "bbox": [0, 0, 1, 1]}, "picture 5"),
        ({"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]}, "category 2"),
        ({"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}, "four finite numbers"),
        ({"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, float("nan")]}, "four finite numbers"),
        ({"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, "x"]}, "instances_train2017.json"),
        ({"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1e300]}, "four finite numbers"),
        ({"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, True]}, "four finite numbers"),
        ({"image_id": 7, "category_id": 1}, "'bbox'"),
        ({"image_id": 7, "category_id": 1, "bbox": [9] * 9999}, r"has bbox \[9, 9, "),
        ({"image_id": "x" * 9999, "category_id": 1, "bbox": [0, 0, 1, 1]}, "of picture 'xxx"),
        ({"image_id": 7, "category_id": "x" * 9999, "bbox": [0, 0, 1, 1]}, "has category 'xxx"),
    ],
)
def test_broken_entries_are_refused(root, entry, words):
    change(root, annotations=[entry])
    with pytest.raises(InputError, match=words) as caught:
        COCODetection(root, "train2017")
    assert len(str(caught.value)) < 300 + len(str(root))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"width": "wide"}, "width and height of picture 7"),
        ({"height": None}, "width and height of picture 7"),
        ({"width": 1e300}, "width and height of picture 7"),
        ({"id": "a\x1b[2J"}, "the picture id .* can't be used, it holds control characters"),
        ({"id": "a" * 201}, "the picture id .* can't be used, it is 201 characters long"),
    ],
    ids=str,
)
def test_broken_pictures_are_refused(root, entry, words):
    change(root, images=[{"id": 7, "file_name": "000000000007.jpg", "width": 9, "height": 9, **entry}], annotations=[])
    with pytest.raises(InputError, match=words):
        COCODetection(root, "train2017")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that can be opened and not read is Linux's")
def test_a_json_that_the_disk_does_not_give_is_named(root):
    path = root / "annotations" / "instances_train2017.json"
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=r"instances_train2017\.json can't be read \("):
        read_coco_annotations(path)


def test_a_split_that_is_missing_is_answered_with_those_that_are_there(root):
    with pytest.raises(InputError, match=r"instances_trainval35k\.json isn't there: .* train2017 \(which holds"):
        COCODetection(root)


def test_missing_or_foreign_json_is_refused(root, tmp_path):
    with pytest.raises(InputError, match="data/scripts"):
        COCODetection(tmp_path / "empty", "val2017")
    path = root / "annotations" / "instances_train2017.json"
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(InputError, match="instances_train2017.json is no COCO"):
            read_coco_annotations(path)


def test_set_without_any_object_is_refused(root):
    change(root, annotations=[])
    with pytest.raises(InputError, match="no picture has an annotated object"):
        COCODetection(root, "train2017")


def test_missing_picture_is_named(root):
    path = root / "images" / "train2017" / "000000000042.jpg"
    path.unlink()
    with pytest.raises(InputError, match="000000000042.jpg"):
        COCODetection(root, "train2017")[0]
