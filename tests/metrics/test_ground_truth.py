"""Reading what to score against: every kind of fault is counted and named, or refused with its file."""

import numpy as np
import pytest
from synthetic import make_coco, make_voc, write_annotation, write_image, write_split

from metrics.ground_truth import note, open_evaluation_set
from utils.errors import InputError

CAT, DOG = ("cat", (11, 12, 40, 50), False), ("dog", (1, 1, 100, 80), True)


@pytest.fixture
def folder(tmp_path):
    return make_voc(tmp_path / "VOC2007", {"a": [CAT, DOG], "b": [], "c": [CAT]})


def test_folder_is_read_as_it_stands(folder):
    images = open_evaluation_set(folder)
    assert (images.title, images.split) == ("VOC2007 val", "val")
    assert images.ids == ("a", "b", "c")  # b has no objects, and is scored all the same
    assert [path.name for path in images.paths] == ["a.jpg", "b.jpg", "c.jpg"]
    assert images.class_names == ("cat", "dog")
    truth, notes = images.ground_truth(["dog", "cat"])
    assert truth.images.tolist() == [0, 0, 2]
    assert truth.labels.tolist() == [1, 0, 1]
    assert truth.difficult.tolist() == [False, True, False]
    assert truth.boxes.tolist() == [[11, 12, 40, 50], [1, 1, 100, 80], [11, 12, 40, 50]]
    assert notes == []
    assert images.notes == ()


def test_year_and_split_are_taken_from_the_name(folder):
    make_voc(folder.parent / "VOC2012", {"z": [CAT]}, split="val")
    write_split(folder, "test", ["a"])
    write_split(folder, "val_small", ["c"])
    root = folder.parent
    assert open_evaluation_set("VOC", root).ids == ("a",)
    assert open_evaluation_set("VOC", root).title == "VOC2007 test"
    assert open_evaluation_set("VOC", root, "val").ids == ("a", "b", "c")
    assert open_evaluation_set("VOC", root, "val_small").ids == ("c",)
    year_2012 = open_evaluation_set("VOC", root, "2012_val")
    assert (year_2012.ids, year_2012.split) == (("z",), "val")


def test_missing_data_names_the_file_and_the_download_script(folder, tmp_path):
    with pytest.raises(InputError, match=r"train\.txt"):
        open_evaluation_set(folder, split="train")
    (tmp_path / "empty").mkdir()
    for dataset in ("VOC", "COCO"):
        with pytest.raises(InputError, match=f"data/scripts/{dataset}.*GB"):
            open_evaluation_set(dataset, tmp_path / "empty")
    with pytest.raises(InputError, match="neither VOC, COCO, ILSVRC nor a folder"):
        open_evaluation_set(tmp_path / "empty")


def test_images_without_annotation_or_file_are_counted_and_named(folder):
    write_split(folder, "val", ["x", "a", "y", "c"])
    (folder / "JPEGImages" / "c.jpg").unlink()
    images = open_evaluation_set(folder)
    assert images.ids == ("a",)
    assert images.notes == (
        "left out 2 images of split val without annotation: x, y",
        "left out 1 image of split val without image file: c",
    )
    without_files = open_evaluation_set(folder, images=False)
    assert (without_files.ids, without_files.paths) == (("a", "c"), ())


def test_nothing_left_to_score_is_refused(folder):
    write_split(folder, "val", [*map(str, range(20))])
    with pytest.raises(InputError, match=r"no images to score in split val; left out 20 .*: 0, 1, 2, 3, 4, \.\.\.$"):
        open_evaluation_set(folder)
    write_split(folder, "val", [])
    with pytest.raises(InputError, match=r"val\.txt"):
        open_evaluation_set(folder)


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.PNG"])
def test_any_usual_suffix_will_do(tmp_path, name):
    folder = make_voc(tmp_path / "mine", {"a": [CAT]}, images=False)
    write_image(folder / "JPEGImages" / name)
    assert open_evaluation_set(folder).paths[0].name == name


@pytest.mark.parametrize(
    "text", ["<annotation><object>", "", "<annotation><object><name>cat</name></object></annotation>"]
)
def test_damaged_annotation_is_refused_by_name(folder, text):
    (folder / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(InputError, match=r"b\.xml"):
        open_evaluation_set(folder)


def test_inverted_boxes_are_counted_and_named(folder):
    write_annotation(folder, "b", [("cat", (40, 1, 30, 20), False), CAT, ("dog", (1, 9, 9, 1), False)])
    images = open_evaluation_set(folder)
    assert len(images.objects) == 4
    assert images.notes == ("left out 2 objects with xmin > xmax or ymin > ymax: b (cat), b (dog)",)


def test_objects_of_other_classes_are_counted_and_named(folder):
    truth, notes = open_evaluation_set(folder).ground_truth(["cat", "sofa"])
    assert truth.labels.tolist() == [0, 0]
    assert notes == ["left out the objects of 1 class name outside the class list: dog (1)"]


@pytest.mark.parametrize("names", [["sofa"], ["dog"]])
def test_a_data_set_of_other_classes_is_refused(folder, names):
    """dog has only difficult objects: there is nothing to find."""
    with pytest.raises(InputError, match=f"^VOC2007 val: no objects of {names[0]}; annotated: cat, dog$"):
        open_evaluation_set(folder).ground_truth(names)


def test_repeated_ids_are_scored_once(folder):
    write_split(folder, "val", ["c", "a", "c"])
    images = open_evaluation_set(folder)
    assert images.ids == ("c", "a")
    assert images.objects.images.tolist() == [0, 1, 1]


def test_coco_takes_ids_and_classes_from_the_json(tmp_path):
    objects = {42: [(18, (10, 20, 30, 40), 0), (1, (0, 0, 100, 80), 1)], 7: []}
    root = make_coco(tmp_path, objects, {18: "dog", 1: "person", 90: "toothbrush"})
    images = open_evaluation_set("COCO", root)
    assert images.class_names == ("person", "dog", "toothbrush")
    assert images.ids == (42, 7)
    truth, notes = images.ground_truth(images.class_names)
    assert truth.labels.tolist() == [1, 0]
    assert truth.difficult.tolist() == [False, True]
    assert truth.images.tolist() == [0, 0]
    assert np.array_equal(truth.boxes, [[11, 21, 41, 61], [1, 1, 101, 81]])
    assert notes == []
    (root / "images" / "val2017" / "000000000007.jpg").unlink()
    assert open_evaluation_set("COCO", root).notes == ("left out 1 image of split val2017 without image file: 7",)


def test_ilsvrc_translates_wordnet_ids(tmp_path):
    """The paper's split val2 by default, else val."""
    dog, unknown = ("n02084071", (11, 12, 40, 50), None), ("n99999999", (1, 1, 9, 9), None)
    make_voc(tmp_path / "voc", {"one": [dog], "two": [dog, unknown]}, images=False)
    (tmp_path / "Annotations" / "DET").mkdir(parents=True)
    (tmp_path / "voc" / "Annotations").rename(tmp_path / "Annotations" / "DET" / "val")
    lists = tmp_path / "ImageSets" / "DET"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("one 1\ntwo 2\n")
    for name in ("one", "two"):
        write_image(tmp_path / "Data" / "DET" / "val" / f"{name}.JPEG")
    images = open_evaluation_set("ILSVRC", tmp_path)
    assert (images.title, images.ids, images.class_names) == ("ILSVRC DET val", ("one", "two"), ("dog", "n99999999"))
    truth, notes = images.ground_truth(["accordion", "dog"])
    assert truth.labels.tolist() == [1, 1]
    assert notes[0].endswith(": n99999999 (1)")
    (lists / "val2.txt").write_text("two 1\n")
    assert open_evaluation_set("ILSVRC", tmp_path).ids == ("two",)


def test_notes_can_be_printed_whatever_they_name():
    assert note("left out {}", "image", ["\ud800", "a\x1b[2J", 7]) == ["left out 3 images: \\ud800, a\\x1b[2J, 7"]
    assert note("left out {}", "image", ["x" * 9999]) == [f"left out 1 image: {'x' * 100}"]
    assert note("no {} in {0.__class__}", "file", ["a"]) == ["no 1 file in {0.__class__}: a"]
    assert note("left out {}", "image", []) == []
