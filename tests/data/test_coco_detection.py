"""COCO: ids and classes from the JSON, the lineage's names, and named faults."""

import json

import cv2
import numpy as np
import pytest
import torch
from checks import refused
from synthetic import make_coco

from data import BaseTransform, get_label_map
from data.coco import COCO_CLASSES, COCOAnnotationTransform, COCODetection, read_coco_annotations
from data.transforms import detection_collate

CATEGORIES = {90: "toothbrush", 18: "dog", 1: "person"}
OBJECTS = {
    42: [(18, (10, 20, 30, 40), 0), (90, (50, 40, 25, 20), 0), (1, (0, 0, 100, 80), 1)],
    7: [],
    9: [(1, (0, 0, 50, 80), 0), (1, (5, 5, 0, 9), 0)],
}


@pytest.fixture
def root(tmp_path):
    return make_coco(tmp_path, OBJECTS, CATEGORIES, split="train2017")


def test_items_contain_fractions_and_labels_in_the_order_of_the_ids(root):
    dataset = COCODetection(root, "train2017", BaseTransform(300, (104, 117, 123)))
    assert dataset.class_names == ("person", "dog", "toothbrush")
    assert dataset.ids == [42, 9]  # 7 has no objects
    image, target = dataset[0]
    assert (tuple(image.shape), target.dtype) == ((3, 300, 300), np.float32)
    assert np.allclose(target, [[0.1, 0.25, 0.4, 0.75, 1], [0.5, 0.5, 0.75, 0.75, 2]])  # without the crowd
    assert np.allclose(dataset[1][1], [[0, 0, 0.5, 1, 0]])  # without the box of no width
    dataset = COCODetection(root, "train2017", keep_empty=True)
    assert dataset.ids == [42, 7, 9]
    assert [tuple(target.shape) for target in detection_collate([dataset[0], dataset[1]])[1]] == [(2, 5), (0, 5)]


def test_the_lineages_accessors(root, capsys):
    dataset = COCODetection(str(root), "train2017")
    path = root / "images" / "train2017" / "000000000042.jpg"
    assert np.array_equal(dataset.pull_image(0), cv2.imread(str(path)))
    tensor = dataset.pull_tensor(0)
    assert tensor.shape == (1, 80, 100, 3)
    assert [entry["category_id"] for entry in dataset.pull_anno(0)] == [18, 90, 1]
    ids = dataset.coco.getAnnIds(imgIds=dataset.ids[0])
    assert dataset.coco.loadAnns(ids) == dataset.pull_anno(0)
    assert dataset.coco.loadImgs(42)[0]["file_name"] == path.name
    assert capsys.readouterr().out == ""
    assert dataset.root == str(root)
    (root / "images" / "train2017").rename(root / "train2017")  # the official layout
    assert np.array_equal(COCODetection(root, "train2017").pull_image(0), tensor[0])


def test_transform_is_called_with_image_boxes_and_labels(root):
    def mirror(image, boxes, labels):
        boxes = boxes.copy()
        boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
        return image[:, ::-1], boxes, labels

    plain, mirrored = COCODetection(root, "train2017"), COCODetection(root, "train2017", mirror)
    assert torch.equal(mirrored[0][0], plain[0][0].flip(0, 2))  # RGB and mirrored
    assert np.allclose(mirrored[0][1][:, :4], [[0.6, 0.25, 0.9, 0.75], [0.25, 0.5, 0.5, 0.75]])


class TestAnnotationTransform:
    def test_alone_it_has_cocos_labels(self):
        entries = [{"bbox": [10, 20, 30, 40], "category_id": key} for key in (1, 13, 18, 90)]
        rows = COCOAnnotationTransform()(entries, 100, 80)
        assert np.allclose(rows[0], [0.1, 0.25, 0.4, 0.75, 0])
        assert [COCO_CLASSES[row[4]] for row in rows] == ["person", "stop sign", "dog", "toothbrush"]
        assert entries[0]["bbox"] == [10, 20, 30, 40]  # unchanged
        unknown = {"bbox": [1, 1, 2, 2], "category_id": 12}
        refused("category 12 is not in the label map", COCOAnnotationTransform(), [unknown], 100, 80)

    def test_a_label_map_or_an_index_of_its_own(self, tmp_path, root):
        path = tmp_path / "coco_labels.txt"
        path.write_text("1,2,person\n18,1,dog\n90,3,toothbrush\n")
        assert get_label_map(path) == {1: 2, 18: 1, 90: 3}
        for own in (path, str(path), {1: 1, 18: 0, 90: 2}):
            dataset = COCODetection(root, "train2017", None, COCOAnnotationTransform(own))
            assert [row[4] for row in dataset[0][1]] == [0, 2]
        path.write_text("person\n")
        refused("not a label map", COCOAnnotationTransform, path)

    def test_one_without_serves_several_data_sets(self, tmp_path):
        transform = COCOAnnotationTransform()
        first, second = (
            COCODetection(make_coco(tmp_path / str(len(names)), OBJECTS, names, split="a"), "a", None, transform)
            for names in (CATEGORIES, {**CATEGORIES, 20: "sheep"})
        )
        assert [[row[4] for row in dataset[0][1]] for dataset in (first, second)] == [[1, 2], [1, 3]]


def entry(**changes):
    return {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], **changes}]}


def image(**changes):
    return {"images": [{"id": 7, "file_name": "7.jpg", "width": 9, "height": 9, **changes}], "annotations": []}


@pytest.mark.parametrize(("parts", "words"), [
    (entry(image_id=5), "unlisted image 5"), (entry(image_id="x" * 9999), "unlisted image 'xxx"),
    (entry(category_id=2), "unlisted category 2"), (entry(category_id=[1]), "instances_train2017.json: not a COCO"),
    *((entry(bbox=[0, 0, 1, *last]), "four finite numbers") for last in ([], [float("nan")], ["x"], [1e300], [True])),
    (entry(bbox=[9] * 9999), r"has bbox \[9, 9, "),
    ({"annotations": [{"image_id": 7, "category_id": 1}]}, "'bbox' is missing"),
    (image(id="a\x1b[2J"), "the image id .* is invalid, it contains control characters"),
    (image(id="a" * 201), "the image id .* is invalid, it has 201 characters"),
    (image(file_name=""), "the file_name of image 7 is invalid, it is empty"),
    ({"categories": [{"id": 1, "name": "a"}, {"id": "b", "name": "b"}]}, "neither all integers nor all text"),
    ({"categories": [{"id": 1, "name": "a"}, {"id": 18, "name": "a"}]}, "1 and 18 have the same name 'a'; rename"),
    ({"annotations": []}, "no image has an annotated object"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_a_broken_json_is_refused(root, parts, words):
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
    assert len(refused(words, COCODetection, root, "train2017")) < 300 + len(str(root))


def test_missing_or_foreign_json_is_refused(root):
    refused(r"trainval35k\.json: no such file; choose another split, found: train2017 ", COCODetection, root)
    path = root / "annotations" / "instances_train2017.json"
    for text in ("{", "[]", "{}", "[" * 100_000):
        path.write_text(text)
        refused("instances_train2017.json: not a COCO instances JSON", read_coco_annotations, path)
