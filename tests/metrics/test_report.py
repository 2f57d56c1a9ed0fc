"""The printed table and its figures in the other files; results.json; the page of mistakes."""

import base64
import json
import re

import cv2
import numpy as np
import pytest
from checks import refused
from synthetic import make_coco, make_voc

from metrics.evaluation import Scored, evaluate
from metrics.ground_truth import open_evaluation_set
from metrics.report import prepare_folder, summary, table, write_report
from metrics.voc import DetectionArrays

OBJECTS = {
    "a": [("cat", (11, 11, 50, 50), False), ("dog", (1, 1, 9, 9), True)],
    "b": [("cat", (11, 11, 50, 50), True), ("sofa", (21, 21, 60, 60), False)],
}


@pytest.fixture
def images(tmp_path):
    return open_evaluation_set(make_voc(tmp_path / "mine", OBJECTS))


@pytest.fixture
def evaluation(images):
    found = DetectionArrays([0, 1, 1], [0, 0, 1], [0.9, 0.8, 0.7], [(11, 11, 50, 50)] * 3)
    return evaluate(images, Scored("net", ("cat", "dog", "sofa"), found, {"checkpoint": "net"}))


def cells(evaluation):
    return {line.split()[0]: line.split()[1:] for line in table(evaluation).splitlines()}


def test_table_shows_figures_and_counts_of_each_class(evaluation):
    rows = cells(evaluation)
    assert rows["cat"] == ["1.0000"] * 4 + ["1", "1", "2"]
    assert rows["dog"] == ["-", "-", "-", "-", "0", "1", "1"]
    assert rows["sofa"] == ["0.0000"] * 4 + ["1", "0", "0"]
    assert rows["mean"] == ["/", "sum", *["0.5000"] * 4, "2", "2", "3"]
    assert len({len(line) for line in table(evaluation).splitlines()}) == 1
    first, *means, best, left_out = summary(evaluation)
    assert (first, best) == ("net on mine val: 2 images", "best mean F1 0.500 at threshold 0.45")
    rules = ["reference rule, 11 points", "reference rule, area", "devkit rule, 11 points", "devkit rule, area"]
    assert means == [f"mAP 0.5000  {rule}" for rule in rules]
    assert left_out == "without ground truth, so left out of the mean: dog"


def test_results_json_holds_every_figure_and_no_nan(tmp_path, evaluation):
    returned = write_report(tmp_path, evaluation, {"configuration": {"top_k": 200}})
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content == returned
    assert set(content["voc"]) == {"reference", "devkit"}
    devkit, counts = content["voc"]["devkit"], {"objects": 0, "difficult": 1, "detections": 1}
    assert devkit["mAP_11_points"] == pytest.approx(0.5)
    assert devkit["classes"]["dog"] == {"AP_11_points": None, "AP_area": None, **counts}
    assert devkit["left_out_without_ground_truth"] == ["dog"]
    assert content["best_mean_F1"] == {"mean_F1": pytest.approx(0.5), "threshold": 0.45}
    assert (content["dataset"]["images"], content["versions"]["numpy"]) == (2, np.__version__)
    named = {name: content[name] for name in ("scored", "configuration", "coco")}
    assert named == {"scored": {"checkpoint": "net"}, "configuration": {"top_k": 200}, "coco": None}


@pytest.mark.parametrize("rule", ["reference", "devkit"])
def test_the_page_shows_the_figures_of_the_table(tmp_path, images, rule):
    boxes = [(11, 11, 50, 50)] * 2 + [(21, 21, 60, 53)] * 2
    found = DetectionArrays([0, 1, 1, 1], [0, 0, 2, 0], [0.9, 0.8, 0.7, 0.95], boxes)
    evaluation = evaluate(images, Scored("net", ("cat", "dog", "sofa"), found, {}), rule)
    write_report(tmp_path, evaluation, {})
    page, rows = (tmp_path / "mistakes.html").read_text(), cells(evaluation)
    assert f"<p>mAP {rows['mean'][2]} ({rule} rule, 11 points) · 2 images</p>" in page
    shown = dict(re.findall(r"<a href=[^>]*>(\w+) <span>([^<]*)</span></a>", page))
    assert shown and shown == {name: rows[name][0] for name in shown}
    assert re.findall(r"AP (\S+) ·", page) == list(shown.values())
    assert f"score {evaluation.threshold:.2f}, which gives the best mean F1 ({evaluation.mean_f1:.3f})" in page
    (source,) = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)  # the false cat
    crop = cv2.imdecode(np.frombuffer(base64.b64decode(source), np.uint8), cv2.IMREAD_COLOR)
    assert max(crop.shape[:2]) == 240
    assert "http" not in page


def test_curves_are_drawn_for_each_class_and_without_detections(tmp_path, images, evaluation):
    write_report(tmp_path, evaluation, {})
    curves = cv2.imread(str(tmp_path / "pr_curves.png"))
    assert curves.shape[0] > 250
    assert (curves[..., 0].astype(int) - curves[..., 2] > 60).any(axis=0)[: curves.shape[1] // 2].any()  # cat's, blue
    nothing = DetectionArrays([], [], [], [])
    write_report(tmp_path, evaluate(images, Scored("net", ("cat",), nothing, {})), {})
    assert (cv2.imread(str(tmp_path / "pr_curves.png")) != curves[:1, :1]).any()


def test_report_never_goes_into_the_data_or_a_file(tmp_path, images):
    before = sorted(images.folder.rglob("*"))
    for inside in (images.folder, images.folder / "JPEGImages" / "eval", tmp_path / "other" / ".." / "mine" / "x"):
        refused("inside the data set", prepare_folder, inside, images.folder)
    assert sorted(images.folder.rglob("*")) == before
    (tmp_path / "file").write_text("")
    refused("--save_folder", prepare_folder, tmp_path / "file" / "report", images.folder)
    (tmp_path / "results.json").write_text("old")
    prepare_folder(tmp_path, images.folder)
    assert not (tmp_path / "results.json").exists()


def test_coco_figures_stand_once_below_the_table(tmp_path):
    root = make_coco(tmp_path, {1: [(5, (0, 0, 50, 50), 0)], 2: [(6, (9, 9, 30, 30), 0)]}, {5: "dog", 6: "kite"})
    images = open_evaluation_set("COCO", root)
    found = DetectionArrays([0, 1, 1], [0, 1, 0], [0.9, 0.8, 0.95], [[1, 1, 51, 46], [11, 11, 41, 41], [5, 5, 9, 9]])
    evaluation = evaluate(images, Scored("net", ("dog", "kite"), found, {}))
    assert cells(evaluation)["class"] == ["AP", "AP50", "objects", "crowds", "detections"]
    ap = f"{evaluation.coco[0]['AP']:.4f}"
    assert " ".join([table(evaluation), *summary(evaluation)]).split().count(ap) == 1
    assert f"AP        {ap}  COCO" in summary(evaluation)
    content = write_report(tmp_path, evaluation, {})
    assert (content["coco"]["AP"], content["coco"]["AP_large"]) == (evaluation.coco[0]["AP"], None)
    page = (tmp_path / "mistakes.html").read_text()
    assert page.count(ap) == page.count(f"mAP {ap} (COCO, IoU 0.50 to 0.95)") == 1
    assert f"AP {cells(evaluation)['dog'][0]} ·" in page
