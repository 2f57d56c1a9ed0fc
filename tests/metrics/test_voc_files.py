"""The devkit's detection files: what is written is read again exactly, and whatever is wrong is named."""

import numpy as np
import pytest
from metrics.voc_files import classes_with_files, detection_file, read_detection_files, write_detection_files

from metrics.voc import DetectionArrays
from utils.errors import InputError

IDS = ["000001", "2008_000002", "dog-7"]


def random_detections(count, classes, seed=0):
    random = np.random.RandomState(seed)
    return DetectionArrays(
        np.sort(random.randint(0, len(IDS), count)),
        random.randint(0, classes, count),
        random.rand(count).astype(np.float32),
        (random.rand(count, 4) * 500 - 20).astype(np.float32),
    )


def write(folder, name, text, split="val"):
    folder.mkdir(exist_ok=True)
    (folder / f"det_{split}_{name}.txt").write_text(text)
    return folder


def test_files_read_back_with_float32_precision(tmp_path):
    found = random_detections(500, 2)
    write_detection_files(tmp_path, "val", IDS, ["cat", "dog"], found)
    again, notes = read_detection_files(tmp_path, "val", IDS, ["cat", "dog"])
    by_class = found.take(np.argsort(found.labels, kind="stable"))
    assert notes == []
    assert np.array_equal(again.pictures, by_class.pictures)
    assert np.array_equal(again.labels, by_class.labels)
    assert np.array_equal(again.scores.astype(np.float32), by_class.scores.astype(np.float32))
    assert np.array_equal(again.boxes.astype(np.float32), by_class.boxes.astype(np.float32))


def test_lines_have_the_devkits_form(tmp_path):
    found = DetectionArrays([1], [0], [0.5], [[1.5, 2, 30.25, 40]])
    (path,) = write_detection_files(tmp_path, "test", IDS, ["cat"], found)
    assert path.name == "det_test_cat.txt"
    assert path.read_text() == "2008_000002 0.5 1.5 2.0 30.25 40.0\n"


def test_class_without_detections_gets_an_empty_file_that_reads(tmp_path):
    write_detection_files(tmp_path, "val", IDS, ["cat", "dog"], random_detections(0, 1))
    assert [path.stat().st_size for path in sorted(tmp_path.iterdir())] == [0, 0]
    again, notes = read_detection_files(tmp_path, "val", IDS, ["cat", "dog"])
    assert (len(again), notes) == (0, [])


def test_any_class_name_makes_a_file_name(tmp_path):
    names = ["traffic light", "../up", "a/b", "100%", 'so "called"', "dog_house", "naïve"]
    write_detection_files(tmp_path, "val", IDS, names, random_detections(50, len(names)))
    assert classes_with_files(tmp_path, "val") == sorted(names)
    assert all(detection_file(tmp_path, "val", name).parent == tmp_path for name in names)
    assert len(read_detection_files(tmp_path, "val", IDS, names)[0]) == 50


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("000001 0.5 1 2 3", "line 3 has 5 fields"),
        ("000001 0.5 1 2 3 4 5", "line 3 has 7 fields"),
        ("000001 0.5 1 2 3 four", "line 3 has 'four'"),
        ("000001 nan 1 2 3 4", "line 3 has 'nan'"),
        ("000001 0.5 1 2 inf 4", "line 3 has 'inf'"),
        ("000001 0.5 1 2 1e39 4", "line 3 has '1e39'"),
        (f"000001 0.5 1 2 {'9' * 999} 4", "line 3 has '9999"),
    ],
)
def test_bad_line_is_named_with_its_number(tmp_path, line, words):
    folder = write(tmp_path, "cat", f"000001 0.9 1 2 3 4\n\n{line}\n000001 bad\n")
    with pytest.raises(InputError, match=words) as caught:
        read_detection_files(folder, "val", IDS, ["cat"])
    assert "det_val_cat.txt" in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "det_val_cat.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="det_val_cat.txt can't be read"):
        read_detection_files(tmp_path, "val", IDS, ["cat"])


def test_windows_line_ends_and_blank_lines_are_read(tmp_path):
    (tmp_path / "det_val_cat.txt").write_bytes(b"\r\n000001 0.5 1 2 3 4\r\n  \r\ndog-7\t0.25 1 2 3 4")
    found, _ = read_detection_files(tmp_path, "val", IDS, ["cat"])
    assert found.pictures.tolist() == [0, 2]
    assert found.scores.tolist() == [0.5, 0.25]


def test_what_is_left_out_is_counted_and_named(tmp_path):
    write(tmp_path, "cat", "000001 0.5 1 2 3 4\nother 0.5 1 2 3 4\nother 0.4 1 2 3 4\n")
    write(tmp_path, "unicorn", "000001 0.5 1 2 3 4\n")
    found, notes = read_detection_files(tmp_path, "val", IDS, ["cat", "dog"])
    assert len(found) == 1
    assert any("1 pictures" in line and "2 detections" in line and line.endswith(": other") for line in notes)
    assert any("never detected" in line and line.endswith(": dog") for line in notes)
    assert any(line.endswith(": unicorn") for line in notes)
    assert len(notes) == 3


@pytest.mark.parametrize(
    ("split", "words"), [("val", "were these files made for another data set"), ("test", "split val")]
)
def test_files_of_another_data_set_or_split_are_refused(tmp_path, split, words):
    folder = write(tmp_path, "cat", f"{'other' * 999} 0.5 1 2 3 4\n")
    with pytest.raises(InputError, match=words) as caught:
        read_detection_files(folder, split, IDS, ["cat"])
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_folder_without_any_known_class_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_detection_files(tmp_path / "none", "val", IDS, ["cat"])
    with pytest.raises(InputError, match="holds no det_val_<class>.txt"):
        read_detection_files(tmp_path, "val", IDS, ["cat"])
    with pytest.raises(InputError, match="of a class of the list"):
        read_detection_files(write(tmp_path, "unicorn", ""), "val", IDS, ["cat"])
