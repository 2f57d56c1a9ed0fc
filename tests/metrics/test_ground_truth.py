"""Reading what to score against: every kind of fault is counted and named, or refused with its file."""

import numpy as np
import pytest
from synthetic import make_coco, make_voc, write_annotation, write_image, write_split

from metrics.ground_truth import open_evaluation_set
from utils.errors import InputError

CAT, DOG = ("cat", (11, 12, 40, 50), False), ("dog", (1, 1, 100, 80), True)


@pytest.fixture
def folder(tmp_path):
    return make_voc(tmp_path / "VOC2007", {"a": [CAT, DOG], "b": [], "c": [CAT]})


def test_folder_is_read_as_it_stands(folder):
    pictures = open_evaluation_set(str(folder))
    assert pictures.title == "VOC2007 val"
    assert pictures.ids == ("a", "b", "c")  # b has no object, and is scored all the same
    assert pictures.sizes == ((100, 80),) * 3
    assert [path.name for path in pictures.paths] == ["a.jpg", "b.jpg", "c.jpg"]
    truth, notes = pictures.ground_truth(["dog", "cat"])
    assert truth.pictures.tolist() == [0, 0, 2]
    assert truth.labels.tolist() == [1, 0, 1]
    assert truth.difficult.tolist() == [False, True, False]
    assert truth.boxes.tolist() == [[11, 12, 40, 50], [1, 1, 100, 80], [11, 12, 40, 50]]
    assert notes == []
    assert pictures.notes == ()


def test_annotation_without_difficult_is_not_difficult(folder):
    write_annotation(folder, "b", [("cat", (1, 1, 5, 5), None)])
    assert open_evaluation_set(str(folder)).object_difficult.tolist() == [False, True, False, False]


def test_year_and_split_are_taken_from_the_name(folder):
    make_voc(folder.parent / "VOC2012", {"z": [CAT]}, split="val")
    write_split(folder, "test", ["a"])
    root = str(folder.parent)
    assert open_evaluation_set("VOC", root).ids == ("a",)
    assert open_evaluation_set("VOC", root).title == "VOC2007 test"
    assert open_evaluation_set("VOC", root, "val").ids == ("a", "b", "c")
    write_split(folder, "val_small", ["c"])
    assert open_evaluation_set("VOC", root, "val_small").ids == ("c",)
    year_2012 = open_evaluation_set("VOC", root, "2012_val")
    assert (year_2012.ids, year_2012.split) == (("z",), "val")


def test_missing_split_names_those_that_are_there(folder):
    with pytest.raises(InputError, match=r"train\.txt isn't there.*has val"):
        open_evaluation_set(str(folder), split="train")


def test_missing_data_says_where_they_come_from(tmp_path):
    with pytest.raises(InputError, match="data/scripts"):
        open_evaluation_set("VOC", str(tmp_path))
    with pytest.raises(InputError, match="data/scripts"):
        open_evaluation_set("COCO", str(tmp_path))
    with pytest.raises(InputError, match="neither VOC nor COCO nor a folder"):
        open_evaluation_set(str(tmp_path))


def test_pictures_without_annotation_are_counted_and_named(folder):
    for picture_id in ("x", "y"):
        write_image(folder / "JPEGImages" / f"{picture_id}.jpg")
    write_split(folder, "val", ["x", "a", "y"])
    pictures = open_evaluation_set(str(folder))
    assert pictures.ids == ("a",)
    assert len(pictures.notes) == 1
    assert pictures.notes[0].startswith("2 pictures")
    assert pictures.notes[0].endswith(": x, y")


def test_annotations_without_picture_are_counted_and_named_where_pictures_are_needed(folder):
    (folder / "JPEGImages" / "c.jpg").unlink()
    pictures = open_evaluation_set(str(folder))
    assert pictures.ids == ("a", "b")
    assert len(pictures.notes) == 1
    assert pictures.notes[0].startswith("1 annotated pictures")
    assert pictures.notes[0].endswith(": c")
    assert open_evaluation_set(str(folder), pictures=False).ids == ("a", "b", "c")


def test_nothing_left_to_score_is_refused(folder):
    write_split(folder, "val", ["nothing"])
    with pytest.raises(InputError, match="no picture that can be scored"):
        open_evaluation_set(str(folder))
    write_split(folder, "val", [])
    with pytest.raises(InputError, match=r"val\.txt"):
        open_evaluation_set(str(folder))


def test_pictures_are_needed_only_for_a_network(tmp_path):
    folder = make_voc(tmp_path / "bare", {"a": [CAT]}, pictures=False)
    assert open_evaluation_set(str(folder), pictures=False).paths == (None,)
    with pytest.raises(InputError, match="JPEGImages isn't there"):
        open_evaluation_set(str(folder))


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.PNG"])
def test_any_usual_suffix_will_do(tmp_path, name):
    folder = make_voc(tmp_path / "mine", {"a": [CAT]}, pictures=False)
    write_image(folder / "JPEGImages" / name)
    assert open_evaluation_set(str(folder)).paths[0].name == name


@pytest.mark.parametrize(
    "text", ["<annotation><object>", "", "<annotation><object><name>cat</name></object></annotation>"]
)
def test_broken_annotation_is_refused_by_name(folder, text):
    (folder / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(InputError, match=r"b\.xml"):
        open_evaluation_set(str(folder))


def test_inverted_boxes_are_counted_and_named(folder):
    write_annotation(folder, "b", [("cat", (40, 1, 30, 20), False), CAT, ("dog", (1, 9, 9, 1), False)])
    pictures = open_evaluation_set(str(folder))
    assert len(pictures.object_names) == 4
    assert len(pictures.notes) == 1
    assert pictures.notes[0].startswith("2 boxes have xmin > xmax")
    assert pictures.notes[0].endswith(": b (cat), b (dog)")


def test_objects_of_unlisted_classes_are_counted_and_named(folder):
    truth, notes = open_evaluation_set(str(folder)).ground_truth(["dog"])
    assert len(truth) == 1
    assert notes == ["2 objects are of 1 classes that aren't in the class list and are left out: cat (2)"]


def test_repeated_ids_are_scored_once(folder):
    write_split(folder, "val", ["a", "c", "a"])
    pictures = open_evaluation_set(str(folder))
    assert pictures.ids == ("a", "c")
    assert pictures.notes[0].endswith(": a")


def test_long_lists_show_the_first_names(folder):
    write_split(folder, "val", ["a", *map(str, range(20))])
    (line,) = open_evaluation_set(str(folder)).notes
    assert line.startswith("20 pictures")
    assert line.endswith(": 0, 1, 2, 3, 4, ...")


def test_coco_takes_ids_and_classes_from_the_json(tmp_path):
    root = make_coco(
        tmp_path,
        {42: [(18, (10, 20, 30, 40), 0), (1, (0, 0, 100, 80), 1)], 7: []},
        {18: "dog", 1: "person", 90: "toothbrush"},
    )
    pictures = open_evaluation_set("COCO", str(root))
    assert pictures.class_names == ("person", "dog", "toothbrush")
    assert pictures.ids == ("7", "42")
    truth, notes = pictures.ground_truth(pictures.class_names)
    assert truth.labels.tolist() == [1, 0]
    assert truth.difficult.tolist() == [False, True]
    assert truth.pictures.tolist() == [1, 1]
    assert np.array_equal(truth.boxes, [[11, 21, 41, 61], [1, 1, 101, 81]])
    assert notes == []


def test_coco_pictures_that_are_missing_are_counted_and_named(tmp_path):
    root = make_coco(tmp_path, {1: [], 2: []}, {1: "person"})
    (root / "images" / "val2017" / "000000000002.jpg").unlink()
    pictures = open_evaluation_set("COCO", str(root))
    assert pictures.ids == ("1",)
    assert "000000000002.jpg" in pictures.notes[0]
