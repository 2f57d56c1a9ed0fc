"""results.json, the curves and the printed table."""

import json

import cv2
import numpy as np
import pytest
from metrics.tables import summary, table
from synthetic import make_coco, make_voc

from metrics.evaluation import Scored, evaluate, read_detections
from metrics.ground_truth import open_evaluation_set
from metrics.report import prepare_folder, write_detections, write_report
from metrics.voc import DetectionArrays
from utils.errors import InputError

OBJECTS = {
    "a": [("cat", (11, 11, 50, 50), False), ("dog", (1, 1, 9, 9), True)],
    "b": [("cat", (11, 11, 50, 50), True), ("sofa", (21, 21, 60, 60), False)],
}


@pytest.fixture
def pictures(tmp_path):
    return open_evaluation_set(str(make_voc(tmp_path / "mine", OBJECTS)))


@pytest.fixture
def evaluation(pictures):
    found = DetectionArrays([0, 1, 1], [0, 0, 1], [0.9, 0.8, 0.7], [(11, 11, 50, 50)] * 3)
    return evaluate(pictures, Scored("net", ("cat", "dog", "sofa"), found, {"checkpoint": "net"}))


def test_table_shows_figures_and_counts_of_each_class(evaluation):
    lines = table(evaluation)
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert cells["cat"] == ["1.0000"] * 4 + ["1", "1", "2"]
    assert cells["dog"] == ["-", "-", "-", "-", "0", "1", "1"]
    assert cells["sofa"] == ["0.0000"] * 4 + ["1", "0", "0"]
    assert lines[-1].split()[-3:] == ["2", "2", "3"]
    assert len({len(line) for line in lines}) == 1
    text = "\n".join(summary(evaluation))
    assert "mAP 0.5000  devkit rule, 11 points" in text
    assert "dog (1 classes)" in text


def test_results_json_holds_every_figure_and_no_nan(tmp_path, evaluation):
    folder = prepare_folder(tmp_path / "report", evaluation.pictures.folder)
    returned = write_report(folder, evaluation, {"configuration": {"top_k": 200}})
    content = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert content == returned
    assert set(content["voc"]) == {"reference", "devkit"}
    assert content["voc"]["devkit"]["mAP_11_points"] == pytest.approx(0.5)
    assert content["voc"]["devkit"]["classes"]["dog"] == {
        "AP_11_points": None,
        "AP_area": None,
        "objects": 0,
        "difficult": 1,
        "detections": 1,
    }
    assert content["voc"]["devkit"]["left_out_without_ground_truth"] == ["dog"]
    assert content["dataset"]["pictures"] == 2
    assert content["scored"] == {"checkpoint": "net"}
    assert content["configuration"] == {"top_k": 200}
    assert content["versions"]["numpy"] == np.__version__
    assert content["coco"] is None


def test_only_the_rule_asked_for_is_told(pictures, evaluation):
    one = evaluate(pictures, evaluation.scored, "reference")
    assert [result.rule.name for result in one.voc_results] == ["reference"]
    assert "devkit" not in "\n".join([*table(one), *summary(one)])


def test_curves_are_a_picture_with_a_panel_for_each_class(tmp_path, evaluation):
    write_report(tmp_path, evaluation, {})
    picture = cv2.imread(str(tmp_path / "pr_curves.png"))
    height, width = picture.shape[:2]
    assert width > 500
    assert height > 250
    blue = (picture[..., 0].astype(int) - picture[..., 2] > 60).any(axis=0)
    assert blue[: width // 2].any()  # cat's curve, on the left


def test_curves_are_drawn_where_nothing_was_found_or_annotated(tmp_path, pictures):
    nothing = DetectionArrays([], [], [], np.empty((0, 4)))
    for names in (("cat",), ("unicorn",)):
        write_report(tmp_path, evaluate(pictures, Scored("net", names, nothing, {})), {})
        assert cv2.imread(str(tmp_path / "pr_curves.png")) is not None


def test_mistakes_page_needs_pictures(tmp_path, evaluation):
    write_report(tmp_path, evaluation, {})
    assert not (tmp_path / "mistakes.html").exists()


def test_report_never_goes_into_the_data(tmp_path, pictures):
    before = sorted(path for path in pictures.folder.rglob("*"))
    for inside in (pictures.folder, pictures.folder / "JPEGImages" / "eval", tmp_path / "other" / ".." / "mine" / "x"):
        with pytest.raises(InputError, match="never written into"):
            prepare_folder(inside, pictures.folder)
    assert sorted(path for path in pictures.folder.rglob("*")) == before


def test_folder_that_cannot_be_written_is_named(tmp_path, pictures):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--save_folder"):
        prepare_folder(tmp_path / "file" / "report", pictures.folder)


def test_an_old_report_does_not_pass_for_a_new_one(tmp_path, pictures):
    (tmp_path / "results.json").write_text("old")
    prepare_folder(tmp_path, pictures.folder)
    assert not (tmp_path / "results.json").exists()


def test_written_detections_score_the_same(tmp_path, pictures):
    random = np.random.RandomState(0)
    boxes = np.array([(11, 11, 50, 50), (21, 21, 60, 60)], dtype=np.float32)[random.randint(0, 2, 60)]
    boxes = (boxes + random.normal(0, 4, (60, 4))).astype(np.float32)
    found = DetectionArrays(
        np.sort(random.randint(0, 2, 60)), random.randint(0, 2, 60), random.rand(60).astype(np.float32), boxes
    )
    scored = Scored("net", ("cat", "sofa"), found, {})
    write_detections(tmp_path, pictures, scored)
    again = read_detections(tmp_path, str(pictures.folder), pictures)
    assert again.class_names == ("cat", "dog", "sofa")  # all that are annotated or have a file
    in_memory, from_files = evaluate(pictures, scored), evaluate(pictures, again)
    for before, after in zip(in_memory.voc_results, from_files.voc_results, strict=True):
        assert 0 < before.mean_ap_11 < 1
        assert after.mean_ap_11 == before.mean_ap_11
        assert after.mean_ap_area == before.mean_ap_area


def test_coco_detections_score_the_same_and_the_table_has_coco_columns(tmp_path):
    root = make_coco(tmp_path, {1: [(5, (0, 0, 50, 50), 0)], 2: [(6, (9, 9, 30, 30), 0)]}, {5: "dog", 6: "kite"})
    pictures = open_evaluation_set("COCO", str(root))
    found = DetectionArrays([0, 1, 1], [0, 1, 0], [0.9, 0.8, 0.7], [[1, 1, 51, 46], [11, 11, 41, 41], [5, 5, 9, 9]])
    scored = Scored("net", ("dog", "kite"), found, {})
    report = prepare_folder(tmp_path / "report", root / "annotations")
    (path,) = write_detections(report, pictures, scored)
    before, after = evaluate(pictures, scored), evaluate(pictures, read_detections(path, "COCO", pictures))
    assert before.coco_result.figures["AP"] == after.coco_result.figures["AP"] > 0.3
    assert table(before)[0].split() == ["class", "AP", "AP50", "objects", "crowds", "detections"]
    assert "COCO" in "\n".join(summary(before))
    content = write_report(report, before, {})
    assert content["coco"]["AP"] == before.coco_result.figures["AP"]
    assert content["coco"]["AP_large"] is None
