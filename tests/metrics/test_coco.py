"""COCO's figures against pycocotools called by hand, on the same JSON and on one built independently from VOC data."""

import json
import math
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from synthetic import make_coco

from metrics.coco import FIGURES, annotations_from_arrays, evaluate_coco, results_from_arrays
from metrics.detection_files import write_results
from metrics.evaluation import Scored, coco_results, evaluate, read_detections
from metrics.ground_truth import open_evaluation_set
from metrics.voc import DetectionArrays, GroundTruthArrays

NAMES = ("cat", "dog", "train")
CATEGORIES, IMAGES = (7, 14, 21), range(500, 512)


def by_hand(annotations, results, folder):
    """pycocotools on files, as its own documentation uses it."""
    (folder / "truth.json").write_text(json.dumps(annotations))
    (folder / "results.json").write_text(json.dumps(results))
    with redirect_stdout(StringIO()):
        truth = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def same_as(evaluation):
    """pytest's approximation of pycocotools' figures, whose -1 stands for nothing to measure."""
    return pytest.approx([value if value > -1 else math.nan for value in evaluation.stats], abs=1e-12, nan_ok=True)


def random_case(seed=0, images=12, objects=60, detections=200):
    """Objects of all sizes, difficult ones too; detections are jittered copies, some misnamed; train is never true."""
    random = np.random.RandomState(seed)
    corners = random.randint(1, 200, (objects, 2))
    boxes = np.hstack([corners, corners + random.choice([8, 20, 50, 150], (objects, 2))])
    truth = GroundTruthArrays(
        random.randint(0, images, objects), random.randint(0, 2, objects), random.rand(objects) < 0.2, boxes
    )
    source = random.randint(0, objects, detections)
    found = DetectionArrays(
        truth.images[source],
        np.where(random.rand(detections) < 0.8, truth.labels[source], random.randint(0, 3, detections)),
        random.rand(detections),
        truth.boxes[source] + random.normal(0, 3, (detections, 4)),
    )
    return found, truth


def independent_json(found, truth):
    """The same as COCO's two JSON files, object by object and with numbering of their own."""

    def ids(arrays, row):
        return {"image_id": 500 + int(arrays.images[row]), "category_id": 7 * (1 + int(arrays.labels[row]))}

    rows, results = [], []
    for row in range(len(truth)):
        xmin, ymin, xmax, ymax = (int(number) for number in truth.boxes[row])
        width, height = xmax - xmin + 1, ymax - ymin + 1  # VOC's corners are pixels that belong to the object
        box = {"bbox": [xmin - 1, ymin - 1, width, height], "area": width * height}
        rows.append({**ids(truth, row), "id": 9 + row, **box, "iscrowd": 1 if truth.difficult[row] else 0})
    for row in range(len(found)):
        x1, y1, x2, y2 = (float(number) for number in found.boxes[row])
        box = {"bbox": [x1 - 1, y1 - 1, x2 - x1, y2 - y1], "score": float(found.scores[row])}
        results.append({**ids(found, row), **box})
    categories = [{"id": key, "name": name} for key, name in zip(CATEGORIES, NAMES, strict=True)]
    return {"images": [{"id": key} for key in IMAGES], "annotations": rows, "categories": categories}, results


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
    precision = expected.eval["precision"]
    assert classes["cat"]["AP"] == pytest.approx(precision[:, :, 0, 0, 2].mean(), abs=1e-12)
    assert classes["dog"]["AP50"] == pytest.approx(precision[0, :, 1, 0, 2].mean(), abs=1e-12)
    assert math.isnan(classes["train"]["AP"])
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
    random = np.random.RandomState(3)
    rows = [(image, random.choice([1, 18]).item(), random.randint(5, 60, 4).tolist()) for image in (3, 1, 20) * 4]
    objects = {image: [(key, box, 0) for other, key, box in rows if other == image] for image in (3, 1, 20)}
    objects[20][0] = (*objects[20][0][:2], 1)
    root = make_coco(tmp_path, objects, {18: "dog", 1: "person", 3: "car"}, images=False)
    annotations = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    results = [
        {"image_id": image, "category_id": key, "bbox": (box + random.normal(0, 3, 4)).tolist(), "score": random.rand()}
        for image, key, box in rows * 3
    ]
    expected = by_hand(annotations, results, tmp_path)
    write_results(tmp_path / "mine.json", results)
    images = open_evaluation_set("COCO", root, images=False)
    evaluation = evaluate(images, read_detections(tmp_path / "mine.json", images))
    assert list(evaluation.coco[0].values()) == same_as(expected)
    assert evaluation.voc[0].rule.name == "plain"
    assert sum(each.difficult for each in evaluation.voc[0].classes) == 1


def test_classes_that_only_one_side_knows_are_left_out(tmp_path):
    root = make_coco(tmp_path, {1: [(5, (0, 0, 50, 50), 0), (6, (9, 9, 9, 9), 0)]}, {5: "dog", 6: "kite"})
    images = open_evaluation_set("COCO", root)
    found = DetectionArrays([0, 0], [0, 1], [0.9, 0.8], [[1, 1, 51, 51], [1, 1, 9, 9]])
    scored = Scored("net", ("dog", "unicorn"), found, {})
    evaluation = evaluate(images, scored)
    assert evaluation.coco[0]["AP"] == pytest.approx(1.0)
    assert evaluation.notes == ("left out the objects of 1 class name outside the class list: kite (1)",)
    assert evaluation.voc[0].left_out == ("unicorn",)
    expected = {"image_id": 1, "category_id": 5, "bbox": [0.0, 0.0, 50.0, 50.0], "score": 0.9}
    assert coco_results(images, scored) == [expected]


def test_annotations_without_what_only_segmentation_needs_are_scored(tmp_path):
    """No id, area and iscrowd, which pycocotools takes for granted; and an id of 0, which it takes for none."""
    root = make_coco(tmp_path, {1: [(1, (1, 1, 50, 50), 0)], 2: [(1, (1, 1, 50, 50), 0)]}, {1: "cat"})
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    bare = [{key: row[key] for key in ("image_id", "category_id", "bbox")} for row in content["annotations"]]
    for annotations in (bare, [{**row, "id": number} for number, row in enumerate(bare)]):
        path.write_text(json.dumps({**content, "annotations": annotations}))
        images = open_evaluation_set("COCO", root)
        found = DetectionArrays([0, 1], [0, 0], [0.9, 0.8], images.objects.boxes)
        figures, _ = evaluate(images, Scored("itself", ("cat",), found, {})).coco
        assert (figures["AP"], figures["AR_100"]) == pytest.approx((1, 1))
