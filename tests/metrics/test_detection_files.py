"""Detection files: what is written is read again exactly, and whatever is wrong is named in one line."""

import json

import numpy as np
import pytest
from checks import refused

from metrics.detection_files import read_detection_files, read_results, write_detection_files
from metrics.voc import DetectionArrays

IDS = ["000001", "2008_000002", "dog-7"]


def write(folder, name, text):
    (folder / f"det_val_{name}.txt").write_text(text)
    return folder


def test_files_read_back_with_float32_precision(tmp_path):
    random = np.random.RandomState(0)
    images, labels = np.sort(random.randint(0, len(IDS), 500)), random.randint(0, 2, 500)
    found = DetectionArrays(images, labels, random.rand(500), random.rand(500, 4) * 500 - 20)
    paths = write_detection_files(tmp_path, "val", IDS, ["cat", "dog", "emu"], found)  # no emu is detected
    assert [path.name for path in paths] == ["det_val_cat.txt", "det_val_dog.txt", "det_val_emu.txt"]
    assert paths[0].read_text().startswith(f"000001 {str(np.float32(found.scores[found.labels == 0][0]))} ")
    names, again, notes = read_detection_files(tmp_path, "val", IDS, ["cat", "dog"])
    assert (names, notes) == (("cat", "dog", "emu"), [])
    by_class = found.take(np.argsort(found.labels, kind="stable"))
    for name in ("images", "labels", "scores", "boxes"):
        assert np.array_equal(getattr(again, name).astype("f4"), getattr(by_class, name).astype("f4"))


@pytest.mark.parametrize("line", [
    "000001 0.5 1 2 3", "000001 0.5 1 2 3 four", "000001 nan 1 2 3 4", "000001 0.5 1 2 inf 4",
    "000001 0.5 1 2 1e39 4", f"000001 0.5 1 2 {'9' * 999} 4", "\0",
], ids=lambda line: line[:25])  # fmt: skip
def test_bad_line_is_named_with_its_number(tmp_path, line):
    folder = write(tmp_path, "cat", f"000001 0.9 1 2 3 4\n  \n{line}\n000001 bad\n")
    words = r"det_val_cat\.txt, line 3: not an image id and five finite num"
    assert len(refused(words, read_detection_files, folder, "val", IDS, ["cat"])) < 300 + len(str(tmp_path))
    (tmp_path / "det_val_cat.txt").write_bytes(b"\xff\xfe\x00")
    refused(r"det_val_cat\.txt: can't be read", read_detection_files, tmp_path, "val", IDS, ["cat"])


def test_other_images_and_missing_files_are_counted_and_named(tmp_path):
    """In files with line ends of Windows, blank lines and tabs."""
    write(tmp_path, "cat", "\r\ndog-7\t0.5 1 2 3 4\r\n  \r\nother 0.5 1 2 3 4\r\nother 0.4 1 2 3 4")
    write(tmp_path, "unicorn", "000001 0.25 1 2 3 4\n")
    names, found, notes = read_detection_files(tmp_path, "val", IDS, ["cat", "dog"])
    assert names == ("cat", "dog", "unicorn")
    assert (found.images.tolist(), found.labels.tolist(), found.scores.tolist()) == ([2, 0], [0, 2], [0.5, 0.25])
    assert notes == [
        "no det_val_<class>.txt for 1 class name: dog",
        "left out the detections on 1 image outside split val: other",
    ]


def test_annotated_names_in_capitals_match_files_in_lower_case(tmp_path):
    """As in the evaluation that wrote the files."""
    write(tmp_path, "cat", "dog-7 0.5 1 2 3 4\n")
    names, _, notes = read_detection_files(tmp_path, "val", IDS, ["Cat"])
    assert (names, notes) == (("cat",), [])
    refused("of the data set's classes", read_detection_files, tmp_path, "val", IDS, ["Cat"], any_case=False)


@pytest.mark.parametrize(("split", "text", "words"), [
    ("val", f"{'other' * 999} 0.5 1 2 3 4\n", "files of another data set"), ("test", "", "it has files of split val"),
    ("val", "", "no det_val_<class>.txt of the data set's classes .found unicorn."),
    ("none/val", "", "no files det_none/val_<class>.txt"),
])  # fmt: skip
def test_files_of_another_data_set_or_split_are_refused(tmp_path, split, text, words):
    write(tmp_path, "cat" if text else "unicorn", text)
    assert len(refused(words, read_detection_files, tmp_path, split, IDS, ["cat"])) < 300 + len(str(tmp_path))


GOOD = {"image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_results_json_is_read_into_corners(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "image_id": 4}, {**GOOD, "category_id": 1}]))
    found, notes = read_results(path, [2, 3], [9])
    assert found.images.tolist() == [1]
    assert found.boxes.tolist() == [[2, 3, 5, 7]]
    assert notes == ["left out 2 results of other images or categories: image 4 category 9, image 3 category 1"]


@pytest.mark.parametrize(("content", "words"), [
    ("{", "not a COCO"), ('{"images": []}', "not a list of results"),
    (json.dumps([{**GOOD, "image_id": 77}]), "none of 1 result is"),
    *((json.dumps([GOOD, entry]), "result 1: invalid") for entry in (
        7, {"image_id": 3}, {**GOOD, "bbox": [1, 2, 3]}, {**GOOD, "bbox": [1] * 999}, {**GOOD, "bbox": [1, 2, 3, 1e39]},
        {**GOOD, "score": float("nan")}, {**GOOD, "score": "x" * 99}, {**GOOD, "image_id": [3]}, {**GOOD, "score": {}},
    )),
], ids=lambda text: text[-30:])  # fmt: skip
def test_bad_results_json_is_refused_with_the_entry(tmp_path, content, words):
    path = tmp_path / "results.json"
    refused(r"results\.json: can't be read", read_results, path, [2, 3], [9])
    path.write_text(content)
    assert len(refused(words, read_results, path, [2, 3], [9])) < 400 + len(str(path))
