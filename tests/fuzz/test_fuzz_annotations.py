"""VOC annotations, splits, COCO's JSON and detection files: scored and trained on, or refused by name."""

import json
import os
from xml.etree import ElementTree

import numpy as np
import pytest
from metrics.tables import summary, table
from mutation import HOSTILE, mutate_bytes, mutate_value, mutate_xml
from synthetic import make_coco, make_voc
from training.datasets import training_pictures
from training.findings import examine
from trials import attack

from data.coco import COCODetection
from data.voc0712 import VOCAnnotationTransform, VOCDetection, read_annotation
from metrics.evaluation import Scored, evaluate, read_detections
from metrics.ground_truth import open_evaluation_set

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="inputs are tried in a forked process")

NUMBERS = [b"1e999", b"-1", b"NaN", b"inf", b"1e38", b"1e39", b"99999999999999999999", b"0x10", b"1_0", b"\xc2\xb2",
           b"", b"-0", b".", b"1" * 400, b"1" * 5000]  # fmt: skip
XML_TOKENS = [*NUMBERS, b"<object>", b"</object>", b"<name>", b"<bndbox>", b"&amp;", b"&#0;", b"&#xD800;", b"&x;",
              b"<!--", b"<![CDATA[", b"<!DOCTYPE a>", b'<?xml version="1.0" encoding="utf-16"?>', b"\xff\xfe",
              b"\0"]  # fmt: skip
JSON_TOKENS = [
    *NUMBERS,
    b"null",
    b"true",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b",",
    b'"id":',
    b"\xff",
]
TEXTS = [str(value) for value in HOSTILE if isinstance(value, str | int | float) and str(value).isprintable()]
OBJECTS = {
    "000001": [("cat", (10, 10, 50, 50), 0), ("dog", (20, 5, 90, 70), 1)],
    "000002": [("person on a horse", (1, 1, 100, 80), None)],
}


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path / "voc", OBJECTS)


def use(pictures, scored=None):
    """Score detections (the objects themselves unless given) and print the tables."""
    if scored is None:
        arrays, _ = pictures.ground_truth(pictures.class_names)
        from metrics.voc import DetectionArrays

        scores = np.linspace(1, 0.1, len(arrays.pictures))
        scored = Scored(
            "itself", pictures.class_names, DetectionArrays(arrays.pictures, arrays.labels, scores, arrays.boxes), {}
        )
    evaluation = evaluate(pictures, scored, coco_metrics=True)
    "\n".join([*table(evaluation), *summary(evaluation), *evaluation.notes]).encode()


def read_voc(folder):
    """All that happens to an annotation: eval.py's reading and scoring, train.py's check, the sample's target."""

    def read(path):
        annotation = read_annotation(path)
        names = {
            name: index for index, name in enumerate(sorted({*annotation.names, "cat", "dog", "person on a horse"}))
        }
        np.array(VOCAnnotationTransform(names)(annotation, 100, 80), np.float32)
        pictures = open_evaluation_set(str(folder), split="val", pictures=False)
        use(pictures)

    return read


def test_annotations(voc, tmp_path, count):
    path = voc / "Annotations" / "000001.xml"
    seeds = [path.read_bytes(), (voc / "Annotations" / "000002.xml").read_bytes()]

    def make(rng, _):
        path.write_bytes(mutate_bytes(rng, seeds, XML_TOKENS))
        return path

    attack("VOC annotation, bytes", make, read_voc(voc), count(800), tmp_path)


def test_annotations_with_other_elements(voc, tmp_path, count):
    path = voc / "Annotations" / "000001.xml"
    seed = path.read_bytes()

    def make(rng, _):
        root = ElementTree.fromstring(seed)
        mutate_xml(rng, root, TEXTS)
        path.write_bytes(ElementTree.tostring(root, "utf-8"))
        return path

    attack("VOC annotation, elements", make, read_voc(voc), count(600), tmp_path)


def test_splits(voc, tmp_path, count):
    path = voc / "ImageSets" / "Main" / "val.txt"
    seeds = [path.read_bytes(), b"000001  1\n000002 -1\n", "\ufeff000001\r\n".encode()]
    tokens = [b"../../x", b"/etc/passwd", b"\0", b"\n", b"\xff", b" ", b"a" * 5000, "größe".encode(), b"000001", b"."]

    def make(rng, _):
        path.write_bytes(mutate_bytes(rng, seeds, tokens))
        return path

    def read(_):
        pictures = VOCDetection(voc, [("", "val")])
        findings = examine(pictures, ("cat", "dog", "person on a horse"), 1, lambda line: None)
        "\n".join(findings.failed).encode("utf-8", "surrogateescape")
        open_evaluation_set(str(voc), split="val")

    attack("split (ImageSets)", make, read, count(400), tmp_path)


@pytest.fixture
def coco(tmp_path):
    objects = {1: [(3, (10, 10, 40, 40), 0), (7, (5, 5, 60, 60), 1)], 2: [(3, (0, 0, 100, 80), 0)]}
    return make_coco(tmp_path / "coco", objects, {3: "cat", 7: "dog"})


def read_coco(root):
    """eval.py's reading and scoring, and train.py's."""

    def read(path):
        pictures, names, _ = training_pictures("COCO", str(root), ["val2017"], None, False, 300)
        for index in range(len(pictures)):
            np.array(pictures.pull_target(index, 100, 80), np.float32)
        findings = examine(pictures, names, 1, lambda line: None)
        "\n".join([*findings.failed, *names]).encode()
        COCODetection(root, "val2017", keep_empty=True)
        use(open_evaluation_set("COCO", root))

    return read


def test_coco_annotations(coco, tmp_path, count):
    path = coco / "annotations" / "instances_val2017.json"
    seeds = [path.read_bytes()]

    def make(rng, _):
        path.write_bytes(mutate_bytes(rng, seeds, JSON_TOKENS))
        return path

    attack("COCO annotations, bytes", make, read_coco(coco), count(500), tmp_path)


def test_coco_annotations_with_other_values(coco, tmp_path, count):
    path = coco / "annotations" / "instances_val2017.json"
    seed = json.loads(path.read_text())

    def make(rng, _):
        path.write_text(json.dumps(mutate_value(rng, seed)))
        return path

    attack("COCO annotations, values", make, read_coco(coco), count(900), tmp_path)


def test_coco_results(coco, tmp_path, count):
    results = [
        {"image_id": 1, "category_id": 3, "bbox": [11.5, 9.5, 40, 41], "score": 0.9},
        {"image_id": 2, "category_id": 7, "bbox": [0, 0, 50, 50], "score": 0.25},
    ]
    seeds = [json.dumps(results).encode()]
    pictures = open_evaluation_set("COCO", coco)

    def make(rng, folder):
        path = folder / "results.json"
        if rng.random() < 0.5:
            path.write_bytes(mutate_bytes(rng, seeds, JSON_TOKENS))
        else:
            path.write_text(json.dumps(mutate_value(rng, results)))
        return path

    attack(
        "COCO results", make, lambda path: use(pictures, read_detections(path, "COCO", pictures)), count(900), tmp_path
    )


def test_detection_files(voc, tmp_path, count):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "det_val_dog.txt").write_text("000002 0.5 1 1 50 50\n")
    seeds = [b"000001 0.9 10 10 50 50\n000001 0.8 11.5 9 50 50\n000002 0.125 1e1 1 100 80\n", b"000001 1 1 1 2 2\n"]
    tokens = [*NUMBERS, b" ", b"\n", b"\t", b"\r", b"\x0c", b"\xff", b"000002", "\u2028".encode(), b"\0"]
    pictures = open_evaluation_set(str(voc), split="val", pictures=False)

    def make(rng, _):
        path = folder / "det_val_cat.txt"
        path.write_bytes(mutate_bytes(rng, seeds, tokens))
        return path

    attack(
        "detection file",
        make,
        lambda path: use(pictures, read_detections(folder, str(voc), pictures)),
        count(900),
        tmp_path,
    )
