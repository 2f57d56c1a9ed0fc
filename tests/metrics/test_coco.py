"""COCO's figures against pycocotools called by hand, on the same JSON and on one built independently from VOC data."""

import json
import math
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import test_voc
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from metrics.coco import FIGURES, annotations_from_arrays, evaluate_coco, results_from_arrays
from metrics.evaluation import evaluate, read_detections
from metrics.ground_truth import open_evaluation_set
from metrics.voc import DetectionArrays

NAMES = test_voc.CLASS_NAMES
CATEGORIES, IMAGES = (14, 7, 21, 28), range(511, 499, -1)


def by_hand(annotations, results, folder):
    """pycocotools on files, as its own documentation uses it. The files stay in the folder, which is a COCO set."""
    path = folder / "annotations" / "instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(annotations))
    (folder / "results.json").write_text(json.dumps(results))
    with redirect_stdout(StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def same_as(evaluation):
    """pytest's approximation of pycocotools' figures, whose -1 stands for nothing to measure."""
    return pytest.approx([value if value > -1 else math.nan for value in evaluation.stats], abs=1e-12, nan_ok=True)


def random_case(seed):
    """Objects as in test_voc.py, but of all sizes; as detections jittered copies, some misnamed; sofa is never true."""
    random = np.random.RandomState(seed)
    found, truth = test_voc.random_case(random, images=12, objects=60, detections=200)
    truth, source = replace(truth, boxes=truth.boxes * 25), random.randint(0, 60, 200)
    labels = np.where(random.rand(200) < 0.8, truth.labels[source], found.labels)
    boxes = truth.boxes[source] + random.normal(0, 3, (200, 4))
    return DetectionArrays(truth.images[source], labels, random.rand(200), boxes), truth


def independent_json(found, truth):
    """The same as COCO's two JSON files, object by object and with numbering of their own."""

    def ids(arrays, row):
        return {"image_id": IMAGES[arrays.images[row]], "category_id": CATEGORIES[arrays.labels[row]]}

    rows, results = [], []
    for row, (xmin, ymin, xmax, ymax) in enumerate(truth.boxes.astype(int).tolist()):
        width, height = xmax - xmin + 1, ymax - ymin + 1  # VOC's corners are pixels that belong to the object
        box = {"bbox": [xmin - 1, ymin - 1, width, height], "area": width * height}
        rows.append({**ids(truth, row), "id": 9 + row, **box, "iscrowd": 1 if truth.difficult[row] else 0})
    for row, (x1, y1, x2, y2) in enumerate(found.boxes.tolist()):
        box = {"bbox": [x1 - 1, y1 - 1, x2 - x1, y2 - y1], "score": float(found.scores[row])}
        results.append({**ids(found, row), **box})
    categories = [{"id": key, "name": name} for key, name in zip(CATEGORIES, NAMES, strict=True)]
    images = [{"id": key, "file_name": f"{key}.jpg"} for key in IMAGES]
    return {"images": images, "annotations": rows, "categories": categories}, results


@pytest.mark.parametrize("seed", [0, 1])
def test_figures_agree_with_pycocotools_by_hand_on_an_independent_json(tmp_path, capsys, seed):
    found, truth = random_case(seed)
    annotations, results = independent_json(found, truth)
    expected, before = by_hand(annotations, results, tmp_path), json.dumps([annotations, results])
    capsys.readouterr()
    figures, classes = evaluate_coco(annotations, results, CATEGORIES, IMAGES)
    assert list(figures) == list(FIGURES)
    assert list(figures.values()) == same_as(expected)
    assert 0.05 < figures["AP"] < 0.95
    assert figures["AP_small"] != figures["AP_large"]
    precision = expected.eval["precision"]  # dog's category id is lower than cat's
    assert classes["cat"]["AP"] == pytest.approx(precision[:, :, 1, 0, 2].mean(), abs=1e-12)
    assert classes["dog"]["AP50"] == pytest.approx(precision[0, :, 0, 0, 2].mean(), abs=1e-12)
    assert math.isnan(classes["sofa"]["AP"])
    assert json.dumps([annotations, results]) == before
    assert capsys.readouterr().out == ""

    assert evaluate_coco(annotations, [], CATEGORIES, IMAGES)[0]["AP"] == 0.0
    figures, _ = evaluate_coco({**annotations, "annotations": []}, results, CATEGORIES, IMAGES)
    assert all(math.isnan(figure) for figure in figures.values())

    ids = [f"image {number}" for number in range(12)]
    results = results_from_arrays(found, ids, NAMES)
    figures, _ = evaluate_coco(annotations_from_arrays(truth, ids, NAMES), results, NAMES, ids)
    assert list(figures.values()) == same_as(expected)


def test_a_coco_set_is_scored_like_its_json_by_hand(tmp_path):
    """Also without id, area and iscrowd, which pycocotools takes for granted; and with an id of 0, which it takes for
    none."""
    found, truth = random_case(3)
    annotations, results = independent_json(found, truth)
    expected, rows = by_hand(annotations, results, tmp_path), annotations["annotations"]
    bare = [{key: row[key] for key in ("image_id", "category_id", "bbox", "iscrowd") if row[key]} for row in rows]
    for written in (rows, bare, [{**row, "id": number} for number, row in enumerate(bare)]):
        content = json.dumps({**annotations, "annotations": written})
        (tmp_path / "annotations" / "instances_val2017.json").write_text(content)
        images = open_evaluation_set("COCO", tmp_path, images=False)
        evaluation = evaluate(images, read_detections(tmp_path / "results.json", images))
        assert list(evaluation.coco[0].values()) == same_as(expected)
        assert evaluation.voc[0].rule.name == "plain"
        assert sum(each.difficult for each in evaluation.voc[0].classes) == truth.difficult.sum()
