"""Reading what to score against: every kind of fault is counted and named, or refused with its file."""

import pytest
from checks import refused
from synthetic import make_coco, make_ilsvrc, make_voc, write_annotation, write_split

from metrics.ground_truth import note, open_evaluation_set

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
    assert (notes, images.notes) == ([], ())


def test_year_and_split_are_taken_from_the_name(folder):
    make_voc(folder.parent / "VOC2012", {"z": [CAT]})
    write_split(folder, "test", ["a"])
    write_split(folder, "val_small", ["c"])
    for given, title, split, ids in (
        (None, "VOC2007 test", "test", ("a",)), ("val", "VOC2007 val", "val", ("a", "b", "c")),
        ("val_small", "VOC2007 val_small", "val_small", ("c",)), ("2012_val", "VOC2012 val", "val", ("z",)),
    ):  # fmt: skip
        images = open_evaluation_set("VOC", folder.parent, given)
        assert (images.title, images.split, images.ids) == (title, split, ids)


def test_images_of_one_name_in_two_subfolders_are_two(folder):
    make_voc(folder, {"one/a": [CAT], "two/a": [CAT]})
    assert open_evaluation_set(folder).ids == ("one/a", "two/a")


def test_missing_data_names_the_file_and_the_remedy(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    write_split(folder, "none", [])
    write_split(folder, "gone", [*map(str, range(20))])
    for dataset, root, split, words in (
        (folder, None, "train", r"train\.txt"), (folder, None, "none", r"none\.txt"),
        (folder, None, "gone", r"no images to score in split gone; left out 20 .*: 0, 1, 2, 3, 4, \.\.\.$"),
        ("VOC", empty, None, "data/scripts/VOC.*GB"), ("COCO", empty, None, "data/scripts/COCO.*GB"),
        (empty, None, None, "neither VOC, COCO, ILSVRC nor a folder"),
    ):  # fmt: skip
        refused(words, open_evaluation_set, dataset, root, split)


def test_images_without_annotation_or_file_are_counted_and_named(folder):
    """And repeated ids are scored once."""
    write_split(folder, "val", ["x", "c", "a", "y", "c"])
    (folder / "JPEGImages" / "c.jpg").unlink()
    images = open_evaluation_set(folder)
    assert images.ids == ("a",)
    assert images.notes == (
        "left out 2 images of split val without annotation: x, y",
        "left out 1 image of split val without image file: c",
    )
    without_files = open_evaluation_set(folder, images=False)
    assert (without_files.ids, without_files.paths) == (("c", "a"), ())
    assert without_files.objects.images.tolist() == [0, 1, 1]


def test_inverted_boxes_are_counted_and_named(folder):
    write_annotation(folder, "b", [("cat", (40, 1, 30, 20), False), CAT, ("dog", (1, 9, 9, 1), False)])
    images = open_evaluation_set(folder)
    assert len(images.objects) == 4
    assert images.notes == ("left out 2 objects with xmin > xmax or ymin > ymax: b (cat), b (dog)",)


def test_a_class_with_difficult_objects_only_is_refused(folder):
    """There is nothing to find. For data sets of other classes see test_eval.py."""
    words = "^VOC2007 val: only difficult objects of dog; annotated: cat, dog$"
    refused(words, open_evaluation_set(folder).ground_truth, ["dog"])


def test_capitals_are_lowered_as_in_training(folder):
    write_annotation(folder, "b", [("Cat", (1, 1, 30, 20), False), ("DOG", (1, 9, 9, 19), False)])
    truth, notes = open_evaluation_set(folder).ground_truth(["cat", "dog"])
    assert (sorted(truth.labels.tolist()), notes) == ([0, 0, 0, 1, 1], [])


def test_coco_takes_ids_and_classes_from_the_json(tmp_path):
    objects = {42: [(18, (10, 20, 30, 40), 0), (1, (0, 0, 100, 80), 1)], 7: []}
    root = make_coco(tmp_path, objects, {18: "dog", 1: "person", 90: "toothbrush"})
    images = open_evaluation_set("COCO", root)
    assert images.class_names == ("person", "dog", "toothbrush")
    assert images.ids == (42, 7)
    truth, notes = images.ground_truth(images.class_names)
    assert (truth.images.tolist(), truth.labels.tolist(), truth.difficult.tolist()) == ([0, 0], [1, 0], [False, True])
    assert truth.boxes.tolist() == [[11, 21, 41, 61], [1, 1, 101, 81]]
    assert notes == []
    (root / "images" / "val2017" / "000000000007.jpg").unlink()
    assert open_evaluation_set("COCO", root).notes == ("left out 1 image of split val2017 without image file: 7",)


def test_ilsvrc_translates_wordnet_ids(tmp_path):
    """The paper's split val2 by default, else val."""
    dog, unknown = ("n02084071", (11, 12, 40, 50), None), ("n99999999", (1, 1, 9, 9), None)
    make_ilsvrc(tmp_path, {"one": [dog], "two": [dog, unknown]}, "val")
    images = open_evaluation_set("ILSVRC", tmp_path)
    assert (images.title, images.ids, images.class_names) == ("ILSVRC DET val", ("one", "two"), ("dog", "n99999999"))
    truth, notes = images.ground_truth(["accordion", "dog"])
    assert truth.labels.tolist() == [1, 1]
    assert notes[0].endswith(": n99999999 (1)")
    (tmp_path / "ImageSets" / "DET" / "val2.txt").write_text("two 1\n")
    assert open_evaluation_set("ILSVRC", tmp_path).ids == ("two",)


def test_notes_can_be_printed_whatever_they_name():
    assert note("left out {}", "image", ["\ud800", "a\x1b[2J", 7]) == ["left out 3 images: \\ud800, a\\x1b[2J, 7"]
    assert note("left out {}", "image", ["x" * 9999]) == [f"left out 1 image: {'x' * 100}"]
    assert note("no {} in {0.__class__}", "file", ["a"]) == ["no 1 file in {0.__class__}: a"]
