"""The check before a run: what it counts, what it leaves out, what it refuses, and what becomes of a run."""

import re

import numpy as np
import pytest
import torch
from synthetic import make_coco, make_voc, write_annotation, write_split

import train as train_script
from data import COCODetection, VOCDetection
from data.voc0712 import VOCAnnotationTransform
from training import crops, run_state
from training.check import check_pictures
from training.findings import examine
from training.run import one_line_errors
from training.samples import Subset, usable
from utils.errors import InputError

CLASSES = ("cat", "dog")
CAT, DOG = ("cat", (11, 11, 50, 50), False), ("dog", (21, 31, 90, 70), None)
COUNT = 40  # pictures, so that two unreadable ones are a fair share


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder, far from the user's own."""
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """A folder of sound pictures of 100 x 80 with a cat and a dog each."""
    return make_voc(tmp_path / "mine", {f"p{i:02}": [CAT, DOG] for i in range(COUNT)}, split="train")


def open_folder(folder, *splits, classes=CLASSES, keep_difficult=False):
    transform = VOCAnnotationTransform({name: index for index, name in enumerate(classes)}, keep_difficult)
    return VOCDetection(folder, [("", split) for split in splits or ["train"]], None, transform, "mine")


def check(pictures, classes=CLASSES, **settings):
    """(usable indices, what was said)."""
    said = []
    indices = check_pictures(pictures, classes, said.append, num_workers=2, **settings)
    return indices, "\n".join(said)


def refusal(pictures, classes=CLASSES):
    """The message with which a data set is refused: one line."""
    with pytest.raises(InputError) as caught:
        check(pictures, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def problems(pictures, classes=CLASSES):
    """{kind of problem: its places}, of those that occur."""
    findings = examine(pictures, classes, 1, print)
    return {problem.name: problem.places for problem in findings.problems if problem.places}


def rewrite(folder, picture_id, *objects, size=(100, 80)):
    write_annotation(folder, picture_id, objects, size)


# --- what is counted ------------------------------------------------------------------------------------------------


def test_a_sound_data_set_goes_on_whole(folder):
    indices, said = check(open_folder(folder))
    assert indices == list(range(COUNT))
    assert re.search(r"^cat +40 +40 +0$", said, re.MULTILINE)
    assert re.search(r"^all +80 +40 +0$", said, re.MULTILINE)
    assert said.splitlines()[0] == f"{folder}, train: 40 pictures"
    assert said.splitlines()[-1] == "decision: goes on with 40 pictures and 80 objects"
    assert problems(open_folder(folder)) == {}


def test_every_kind_of_flaw_is_counted_and_named(folder):
    images = folder / "JPEGImages"
    (images / "p01.jpg").write_bytes(b"no picture")
    (images / "p02.jpg").unlink()
    rewrite(folder, "p03", ("cat", (50, 10, 50, 60), 0), ("dog", (10, 60, 50, 10), 0), CAT)
    rewrite(folder, "p04", ("cat", (-20, 10, 60, 60), 0), ("dog", (10, 10, 50, 95), 0))
    rewrite(folder, "p05", ("dog", (101, 10, 120, 60), 0))
    rewrite(folder, "p06")
    rewrite(folder, "p07", ("cat", (11, 11, 50, 50), True))
    rewrite(folder, "p08", CAT, size=(80, 100))
    rewrite(folder, "p09", CAT, size=(0, 0))
    write_split(folder, "train", [*(f"p{i:02}" for i in range(COUNT)), "p10", "p10"])
    indices, said = check(open_folder(folder, classes=(*CLASSES, "cow")), (*CLASSES, "cow"))
    assert indices == [i for i in range(COUNT) if i not in (1, 2)]
    # 40 of each, less those of p01 to p09, plus what was written there instead
    assert re.search(r"^cat +35 +35 +1$", said, re.MULTILINE)
    assert re.search(r"^dog +32 +32 +0$", said, re.MULTILINE)
    assert re.search(r"^all +67 +35 +1$", said, re.MULTILINE)
    found = problems(open_folder(folder, classes=(*CLASSES, "cow")), (*CLASSES, "cow"))
    assert {name: len(places) for name, places in found.items()} == {
        "pictures that can't be read": 2,
        "pictures listed more than once": 2,
        "pictures of another size than annotated": 1,
        "boxes without extent (min >= max)": 2,
        "boxes wholly outside the picture": 1,
        "boxes that reach outside the picture": 2,
        "pictures without objects to train on": 3,
        "classes without objects to train on": 1,
    }
    assert found["boxes without extent (min >= max)"][0] == f"{images / 'p03.jpg'}: cat at (50, 10, 50, 60)"
    assert found["pictures of another size than annotated"] == [
        f"{images / 'p08.jpg'}: annotated as 80 x 100, in fact 100 x 80"
    ]
    assert f"{images / 'p01.jpg'}: not a readable picture" in said
    assert f"{images / 'p02.jpg'}: can't read the picture (No such file" in said
    assert "2  pictures that can't be read: left out\n" in said
    assert "0  annotations that can't be read\n" in said
    assert said.splitlines()[-1] == (
        "decision: goes on with 38 pictures and 67 objects; 4 of the 42 pictures of the list are left out"
    )


@pytest.mark.parametrize("broken", ["<annotation><obj", "", None, "<annotation><object><name>cat</name></object>"])
def test_a_broken_annotation_is_left_out_with_its_picture(folder, broken):
    path = folder / "Annotations" / "p05.xml"
    path.unlink() if broken is None else path.write_text(broken)
    pictures = open_folder(folder)
    indices, said = check(pictures)
    assert indices == [i for i in range(COUNT) if i != 5]
    assert re.search(
        rf"1  annotations that can't be read: left out with their pictures\n +{re.escape(str(path))}: ", said
    )
    assert re.search(r"^cat +39 ", said, re.MULTILINE)


def test_an_edge_of_one_pixel_is_not_worth_a_word(folder):
    """Tools that count from 0 write boxes from 0 to the width; ones of VOC go from 1 to the width."""
    rewrite(folder, "p00", ("cat", (0, 0, 100, 80), 0), ("dog", (1, 1, 101, 81), 0))
    assert problems(open_folder(folder)) == {}
    rewrite(folder, "p00", ("cat", (-1, 0, 100, 80), 0), ("dog", (1, 1, 100, 82.5), 0))
    assert len(problems(open_folder(folder))["boxes that reach outside the picture"]) == 2


def test_difficult_objects_count_where_they_are_trained_on(folder):
    rewrite(folder, "p00", ("cat", (11, 11, 50, 50), True))
    _, without = check(open_folder(folder))
    _, with_them = check(open_folder(folder, keep_difficult=True))
    assert re.search(r"^cat +39 +39 +1$", without, re.MULTILINE)
    assert "aren't trained on" in without
    assert re.search(r"^cat +40 +40 +1$", with_them, re.MULTILINE)
    assert "aren't trained on" not in with_them


@pytest.mark.parametrize("keep_difficult", [False, True])
def test_the_counts_are_what_training_gets(tmp_path, keep_difficult):
    random = np.random.RandomState(0)
    objects = {
        f"p{i:02}": [
            (CLASSES[random.randint(2)], tuple(random.randint(-30, 140, 4)), bool(random.randint(2))) for _ in range(9)
        ]
        for i in range(30)
    }
    pictures = open_folder(make_voc(tmp_path / "wild", objects, split="train"), keep_difficult=keep_difficult)
    trained = np.concatenate([usable(pictures.pull_target(index, 100, 80)) for index in range(30)])
    rows = examine(pictures, CLASSES, 1, print).class_rows
    assert 20 < len(trained) < 150
    assert [row[1] for row in rows] == [int((trained[:, 4] == label).sum()) for label in (0, 1)]


def test_only_the_first_places_are_named_unless_all_are_asked_for(folder):
    for i in range(7):
        rewrite(folder, f"p{i:02}", CAT, ("dog", (50, 10, 50, 60), 0))
    _, short = check(open_folder(folder))
    _, long = check(open_folder(folder), name_all=True)
    assert short.count("dog at (50, 10, 50, 60)") == 3
    assert "and 4 more (--check_only names them all)" in short
    assert long.count("dog at (50, 10, 50, 60)") == 7
    assert "more (" not in long


def test_coco(tmp_path):
    objects = {i: [(18, (10, 10, 40, 40), 0), (44, (5, 5, 20, 20), 0)] for i in range(1, COUNT + 1)}
    objects[1] = [(18, (10, 10, 40, 40), 1), (44, (5, 5, 20, 0), 0), (44, (60, 10, 60, 20), 0)]
    root = make_coco(tmp_path / "coco", objects, {18: "dog", 44: "bottle"}, split="train2017")
    (root / "images" / "train2017" / "000000000002.jpg").unlink()
    pictures = COCODetection(root, "train2017")
    indices, said = check(pictures, pictures.class_names)
    assert indices == [0, *range(2, COUNT)]
    assert re.search(r"^dog +38 +38 +1$", said, re.MULTILINE)
    assert re.search(r"^bottle +39 +39 +0$", said, re.MULTILINE)
    assert "1  boxes without extent (min >= max): dropped" in said
    assert "1  boxes that reach outside the picture: cut to it" in said
    assert said.startswith(f"{root}, train2017: 40 pictures")


# --- what is refused ------------------------------------------------------------------------------------------------


def test_no_pictures(folder):
    pictures = open_folder(folder)
    pictures.ids = []
    assert "lists no pictures; name another one with --train_split" in refusal(pictures)


def test_an_unknown_class_is_refused_with_its_place(folder):
    rewrite(folder, "p03", CAT, ("Dog", (11, 11, 50, 50), 0), ("Dog", (11, 11, 60, 50), 1))
    message = refusal(open_folder(folder))
    assert f"not in the class list: class 'Dog' (2 objects, first in {folder / 'Annotations' / 'p03.xml'})" in message
    assert "--classes" in message
    assert check(open_folder(folder, classes=(*CLASSES, "Dog")), (*CLASSES, "Dog"))[0] == list(range(COUNT))


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([], "not one object"),
        ([("cat", (9, 9, 40, 40), True)], r"40 are marked difficult"),
        ([("cat", (9, 9, 9, 40), 0)], "not"),
    ],
)
def test_a_data_set_without_objects_is_refused(tmp_path, objects, said):
    folder = make_voc(tmp_path / "none", {f"p{i}": objects for i in range(40)}, split="train")
    assert re.search(said, refusal(open_folder(folder)))


def test_more_than_one_in_twenty_unusable_is_an_incomplete_data_set(folder):
    for i in range(2):  # 5 %
        (folder / "JPEGImages" / f"p{i:02}.jpg").unlink()
    assert len(check(open_folder(folder))[0]) == 38
    (folder / "JPEGImages" / "p02.jpg").write_bytes(b"")
    (folder / "Annotations" / "p02.xml").write_text("")  # the same picture: counted once
    message = refusal(open_folder(folder))
    assert "3 of 40 pictures can't be used" in message
    assert "probably incomplete: fetch or unpack it again" in message
    assert str(folder / "JPEGImages" / "p00.jpg") in message


def test_a_second_look_gives_the_same_and_a_new_class_list_is_judged_anew(folder):
    assert check(open_folder(folder)) == check(open_folder(folder))
    assert "class 'dog'" in refusal(open_folder(folder, classes=("cat",)), ("cat",))


# --- in a run -------------------------------------------------------------------------------------------------------


def train(folder, save_folder, *flags):
    arguments = ["--dataset", folder, "--classes", *CLASSES, "--save_folder", save_folder, "--basenet", "none"]
    arguments += ["--width", 0.0625, "--batch_size", 2, "--num_workers", 1, "--device", "cpu", "--warmup", 0]
    arguments += ["--low_resolution", 100, "--low_resolution_iter", 1000, *flags]  # for speed alone
    train_script.main(train_script.get_args_parser().parse_args([str(argument) for argument in arguments]))


def test_check_only_tells_and_ends(folder, tmp_path, capsys):
    (folder / "JPEGImages" / "p07.jpg").unlink()
    with pytest.raises(SystemExit) as caught:
        train(folder, tmp_path / "run", "--check_only")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert str(folder / "JPEGImages" / "p07.jpg") in out
    assert "decision: goes on with 39 pictures" in out.splitlines()[-1]
    assert not list((tmp_path / "run").iterdir())


def test_check_only_and_skip_check_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as caught:
        train_script.get_args_parser().parse_args(["--check_only", "--skip_check"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_run_leaves_out_what_cannot_be_read(folder, tmp_path, capsys):
    (folder / "JPEGImages" / "p07.jpg").write_bytes(b"no picture")
    train(folder, tmp_path / "run", "--max_iter", 10, "--batch_size", 4, "--num_workers", 0)  # 40: an epoch
    assert "goes on with 39 pictures" in capsys.readouterr().out
    assert (tmp_path / "run" / "ssd300_w006_final.pth").exists()


def test_ctrl_c_among_the_crops_says_how_to_go_on(folder, tmp_path, capsys, monkeypatch):
    one_pass, passes = crops._one_pass, []

    def interrupted(*args, **kwargs):
        if passes:
            raise KeyboardInterrupt
        passes.append(one_pass(*args, **kwargs))
        return passes[0]

    monkeypatch.setattr(crops, "_one_pass", interrupted)
    flags = ("--crop_passes", 2, "--crop_size", 32, "--num_workers", 0, "--max_iter", 1, "--resume", "auto")
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "run", *flags)
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped at once; the same command")
    monkeypatch.setattr(crops, "_one_pass", one_pass)
    train(folder, tmp_path / "run", *flags)
    assert "after pass 1" in capsys.readouterr().out


def test_a_picture_lost_in_the_middle_ends_a_run_with_one_line(folder, tmp_path, monkeypatch):
    lost = folder / "JPEGImages" / "p00.jpg"
    save = run_state.save

    def save_and_lose(run, iteration, log):
        save(run, iteration, log)
        lost.unlink(missing_ok=True)

    monkeypatch.setattr(run_state, "save", save_and_lose)
    # Two epochs: the second one shows each picture after the first state was written.
    flags = ("--max_iter", 20, "--batch_size", 4, "--save_every", 2, "--keep", 100)
    with pytest.raises(InputError) as caught:
        train(folder, tmp_path / "run", *flags)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{lost}: can't read the picture")
    assert message.endswith("then go on with --resume auto, from the last state that was saved")

    newest = max(int(path.stem.removeprefix("state_")) for path in (tmp_path / "run").glob("state_*.pth"))
    assert 2 <= newest < 20
    train(folder, tmp_path / "run", *flags, "--resume", "auto")
    assert (tmp_path / "run" / "state_20.pth").exists()


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise InputError("a b.jpg: not a readable picture; repair it")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_error_of_a_worker_is_its_own_line_again(num_workers):
    loader = torch.utils.data.DataLoader(Unreadable(), num_workers=num_workers)
    with (
        pytest.raises(InputError, match=r"^a b\.jpg: not a readable picture; repair it; then go on"),
        one_line_errors(),
    ):
        list(loader)


def test_other_errors_pass_as_they_are():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        1 / 0  # noqa: B018


def test_a_subset_counts_anew(folder):
    pictures = open_folder(folder)
    rewrite(folder, "p05", CAT)
    subset = Subset(pictures, [3, 5])
    assert len(subset) == 2
    assert subset.image_path(1) == pictures.image_path(5)
    assert subset.pull_target(1, 100, 80) == pictures.pull_target(5, 100, 80) != pictures.pull_target(1, 100, 80)
    np.testing.assert_array_equal(subset.pull_image(0), pictures.pull_image(3))
