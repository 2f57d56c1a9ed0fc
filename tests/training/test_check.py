"""The check before a run: what it counts, what it leaves out, and what it refuses."""

import pytest
from checks import refused
from synthetic import make_voc, write_split

from training.check import check_images
from training.distributed import Ranks
from training.samples import open_images

BOX = (10, 10, 60, 60)
DOG = ("dog", BOX, 0)


def check(folder, classes=None, **settings):
    images, class_names = open_images(str(folder), classes=classes)
    return check_images(images, class_names, Ranks(), **settings)


def test_what_is_in_a_data_set(tmp_path, capsys):
    objects = {
        "a": [DOG, ("dog", (20, 20, 70, 70), 0), ("cat", BOX, 0)],
        "b": [("cat", BOX, 0), ("cat", BOX, 1)],
        "c": [],
        "d": [("dog", (50, 10, 50, 60), 0), ("dog", (200, 10, 260, 60), 0), ("dog", (60, 10, 130, 60), 0)],
    }
    assert check(make_voc(tmp_path, objects, split="train")) == [0, 1, 2, 3]
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said[2:6] == ["cat 2 2", "dog 3 2", "all 5 3", "1 image with boxes without area (min >= max): boxes dropped"]
    assert "1 image with boxes outside the image: boxes dropped" in said
    assert "1 image with boxes partly outside: boxes clipped" in said
    assert "1 image without objects to train on: background" in said
    assert said[-1] == "training on 4 images with 5 objects"


def test_damaged_files_are_named_and_left_out_and_repeated_images_are_used_once(tmp_path, capsys):
    ids = [f"p{i:02}" for i in range(40)]
    folder = make_voc(tmp_path, {image_id: [DOG] for image_id in ids})
    write_split(folder, "train", [*ids, "p00"])
    (folder / "JPEGImages" / "p07.jpg").write_bytes(b"no image")
    (folder / "Annotations" / "p09.xml").write_text("<annotation>")
    assert check(folder) == [i for i in range(40) if i not in (7, 9)]
    said = capsys.readouterr().out
    assert "2 images with an unusable file or annotation: left out" in said
    assert "p07.jpg" in said
    assert "p09.xml" in said
    assert "1 image listed more than once: used once" in said


def test_examples_are_limited_unless_asked_for(tmp_path, capsys):
    folder = make_voc(tmp_path, {"a": [DOG], **{f"p{i}": [] for i in range(5)}}, split="train")
    check(folder)
    assert "and 2 more" in capsys.readouterr().out
    check(folder, name_all=True)
    said = capsys.readouterr().out
    assert all(f"p{i}.jpg" in said for i in range(5))


@pytest.mark.parametrize(("objects", "words"), [
    ({"a": []}, "no objects to train on in 1 image;"),
    ({"a": [("dog", BOX, 1)]}, "no objects to train on"),
    ({"a": [DOG], "b": [("cat", BOX, 0)]}, "1 of 2 images can't be used.*cat"),
])  # fmt: skip
def test_data_that_cannot_be_trained_on(tmp_path, objects, words):
    assert str(tmp_path) in refused(words, check, make_voc(tmp_path, objects, split="train"), ["dog"])
