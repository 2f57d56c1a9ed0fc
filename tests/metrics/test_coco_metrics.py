"""COCO's figures against pycocotools called by hand, on the same JSON and on one built independently from VOC data."""

import json
import math
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from metrics.coco_files import read_results, write_results
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from synthetic import make_coco, make_voc

from metrics.coco import FIGURES, annotations_from_arrays, evaluate_coco, results_from_arrays
from metrics.evaluation import Scored, coco_results, evaluate, read_detections
from metrics.ground_truth import open_evaluation_set
from metrics.voc import DetectionArrays, GroundTruthArrays
from utils.errors import InputError

NAMES = ("cat", "dog", "train")


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


def random_case(seed=0, pictures=12, objects=60, detections=200):
    """Objects of all sizes, difficult ones too; detections are jittered copies, some misnamed; train is never true."""
    random = np.random.RandomState(seed)
    corners = random.randint(1, 200, (objects, 2))
    boxes = np.hstack([corners, corners + random.choice([8, 20, 50, 150], (objects, 2))])
    truth = GroundTruthArrays(
        random.randint(0, pictures, objects), random.randint(0, 2, objects), random.rand(objects) < 0.2, boxes
    )
    source = random.randint(0, objects, detections)
    found = DetectionArrays(
        truth.pictures[source],
        np.where(random.rand(detections) < 0.8, truth.labels[source], random.randint(0, 3, detections)),
        random.rand(detections),
        truth.boxes[source] + random.normal(0, 3, (detections, 4)),
    )
    return found, truth


def independent_json(truth, pictures):
    """The same objects as a COCO JSON, object by object and with numbering of its own."""
    rows = []
    for row in range(len(truth)):
        xmin, ymin, xmax, ymax = (int(number) for number in truth.boxes[row])
        width, height = xmax - xmin + 1, ymax - ymin + 1  # VOC's corners are pixels that belong to the object
        rows.append(
            {
                "id": 1000 + row,
                "image_id": 500 + int(truth.pictures[row]),
                "category_id": 7 * (1 + int(truth.labels[row])),
                "bbox": [xmin - 1, ymin - 1, width, height],
                "area": width * height,
                "iscrowd": 1 if truth.difficult[row] else 0,
            }
        )
    return {
        "images": [{"id": 500 + picture} for picture in range(pictures)],
        "annotations": rows,
        "categories": [{"id": 7 * (1 + label), "name": name} for label, name in enumerate(NAMES)],
    }


def independent_results(found):
    results = []
    for row in range(len(found)):
        x1, y1, x2, y2 = (float(number) for number in found.boxes[row])
        results.append(
            {
                "image_id": 500 + int(found.pictures[row]),
                "category_id": 7 * (1 + int(found.labels[row])),
                "bbox": [x1 - 1, y1 - 1, x2 - x1, y2 - y1],
                "score": float(found.scores[row]),
            }
        )
    return results


@pytest.mark.parametrize("seed", [0, 1])
def test_voc_data_as_coco_agree_with_an_independent_json(tmp_path, seed):
    found, truth = random_case(seed)
    expected = by_hand(independent_json(truth, 12), independent_results(found), tmp_path)
    annotations = annotations_from_arrays(truth, [(400, 400)] * 12, NAMES)
    result = evaluate_coco(annotations, results_from_arrays(found, range(1, 13), range(1, 4)))
    assert list(result.figures) == list(FIGURES)
    assert list(result.figures.values()) == same_as(expected)
    assert 0.05 < result.figures["AP"] < 0.95
    assert result.figures["AP_small"] != result.figures["AP_large"]


def test_figures_agree_with_pycocotools_by_hand_on_the_same_json(tmp_path):
    found, truth = random_case(2)
    annotations, results = independent_json(truth, 12), independent_results(found)
    expected = by_hand(annotations, results, tmp_path)
    result = evaluate_coco(annotations, results)
    assert list(result.figures.values()) == same_as(expected)
    precision = expected.eval["precision"]
    assert result.class_ap["cat"] == pytest.approx(precision[:, :, 0, 0, 2].mean(), abs=1e-12)
    assert result.class_ap50["dog"] == pytest.approx(precision[0, :, 1, 0, 2].mean(), abs=1e-12)
    assert math.isnan(result.class_ap["train"])


def test_a_coco_set_is_scored_like_its_json_by_hand(tmp_path):
    random = np.random.RandomState(3)
    objects = {
        number: [(random.choice([1, 18]).item(), tuple(map(int, random.randint(5, 60, 4))), 0) for _ in range(4)]
        for number in (3, 1, 20)
    }
    objects[20][0] = (*objects[20][0][:2], 1)
    root = make_coco(tmp_path, objects, {18: "dog", 1: "person", 3: "car"}, pictures=False)
    annotations = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    results = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [number + random.normal(0, 3) for number in row["bbox"]],
            "score": random.rand(),
        }
        for row in annotations["annotations"] * 3
    ]
    expected = by_hand(annotations, results, tmp_path)
    write_results(tmp_path / "mine.json", results)
    pictures = open_evaluation_set("COCO", str(root), pictures=False)
    evaluation = evaluate(pictures, read_detections(tmp_path / "mine.json", "COCO", pictures))
    assert list(evaluation.coco_result.figures.values()) == same_as(expected)
    assert evaluation.voc_results[0].rule.name == "plain"
    assert sum(of_class.difficult for of_class in evaluation.voc_results[0].classes) == 1


def test_nothing_detected_scores_zero_and_nothing_annotated_scores_nothing():
    annotations = independent_json(random_case()[1], 12)
    assert evaluate_coco(annotations, []).figures["AP"] == 0.0
    empty = {**annotations, "annotations": []}
    assert all(math.isnan(figure) for figure in evaluate_coco(empty, []).figures.values())


def test_arguments_are_left_as_they_are_and_nothing_is_printed(capsys):
    found, truth = random_case()
    annotations, results = independent_json(truth, 12), independent_results(found)
    before = json.dumps([annotations, results])
    evaluate_coco(annotations, results)
    assert json.dumps([annotations, results]) == before
    assert capsys.readouterr().out == ""


def test_pictures_and_categories_can_be_chosen():
    found, truth = random_case()
    annotations, results = independent_json(truth, 12), independent_results(found)
    chosen = evaluate_coco(annotations, results, category_ids=[7], image_ids=[500, 501, 502, 503])
    rows = found.pictures <= 3
    objects = truth.pictures <= 3
    smaller = evaluate_coco(
        independent_json(truth.take(objects & (truth.labels == 0)), 4), independent_results(found.take(rows))
    )
    assert list(chosen.class_ap) == ["cat"]
    assert chosen.class_ap["cat"] == pytest.approx(smaller.class_ap["cat"], abs=1e-12)


def test_results_of_unknown_pictures_are_refused():
    _, truth = random_case()
    result = {"image_id": 9, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 0.5}
    with pytest.raises(ValueError, match="9"):
        evaluate_coco(independent_json(truth, 12), [result])


def test_classes_that_only_one_side_knows_are_named(tmp_path):
    root = make_coco(tmp_path, {1: [(5, (0, 0, 50, 50), 0), (6, (9, 9, 9, 9), 0)]}, {5: "dog", 6: "kite"})
    pictures = open_evaluation_set("COCO", str(root))
    found = DetectionArrays([0, 0], [0, 1], [0.9, 0.8], [[1, 1, 51, 51], [1, 1, 9, 9]])
    scored = Scored("net", ("dog", "unicorn"), found, {})
    evaluation = evaluate(pictures, scored)
    assert evaluation.coco_result.figures["AP"] == pytest.approx(1.0)
    assert any("kite (1)" in line for line in evaluation.notes)
    assert any(line.endswith(": unicorn") for line in evaluation.notes)
    assert coco_results(pictures, scored) == [
        {"image_id": 1, "category_id": 5, "bbox": [0.0, 0.0, 50.0, 50.0], "score": 0.9}
    ]


def test_voc_folder_gets_coco_figures_on_request(tmp_path):
    folder = make_voc(tmp_path / "mine", {"a": [("cat", (11, 11, 50, 50), False)]})
    pictures = open_evaluation_set(str(folder))
    found = DetectionArrays([0], [0], [0.9], [[11, 11, 51, 51]])  # counted from 0: (10, 10) to (50, 50)
    assert evaluate(pictures, Scored("net", ("cat",), found, {})).coco_result is None
    figures = evaluate(pictures, Scored("net", ("cat",), found, {}), coco_metrics=True).coco_result.figures
    assert figures["AP"] == pytest.approx(1.0)
    assert math.isnan(figures["AP_small"])


GOOD = {"image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_results_json_is_read_into_corners(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "image_id": 4}, {**GOOD, "category_id": 1}]))
    found, notes = read_results(path, [2, 3], [9])
    assert found.pictures.tolist() == [1]
    assert found.boxes.tolist() == [[2, 3, 5, 7]]
    assert [line.split(": ")[-1] for line in notes] == ["4", "1"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "can't be read"),
        ('{"images": []}', "no list of results"),
        (json.dumps([GOOD, {"image_id": 3}]), "result 1 isn't"),
        (json.dumps([GOOD, {**GOOD, "bbox": [1, 2, 3]}]), "result 1 has"),
        (json.dumps([GOOD, {**GOOD, "score": float("nan")}]), "result 1 has"),
        (json.dumps([GOOD, {**GOOD, "score": "high"}]), "result 1 isn't"),
        (json.dumps([GOOD, {**GOOD, "score": "x" * 9999}]), "result 1 isn't"),
        (json.dumps([GOOD, {**GOOD, "bbox": [1, 2, 3] * 999}]), "result 1 has"),
        (json.dumps([GOOD, {**GOOD, "bbox": [1, 2, 3, 1e39]}]), "result 1 has"),
        (json.dumps([GOOD, {**GOOD, "image_id": [3]}]), "result 1 isn't"),
        (json.dumps([GOOD, {**GOOD, "category_id": {"id": 9}}]), "result 1 isn't"),
        (json.dumps([{**GOOD, "image_id": 77}]), "none of the 1 results"),
    ],
)
def test_bad_results_json_is_refused_with_the_entry(tmp_path, content, words):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read_results(path, [2, 3], [9])
    assert len(str(caught.value)) < 400 + len(str(path))
