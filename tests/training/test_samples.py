"""The order of samples and their contents: pure functions of the position in the run."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from checks import refused
from synthetic import make_voc
from test_train import assert_same

from data import SSDAugmentation, VOCDetection
from layers.modules import MultiBoxLoss
from ssd import build_ssd
from training import samples
from training.distributed import Ranks
from utils.errors import InputError

OBJECTS = {f"p{i}": [("dog", (5 + i, 5, 60 + i, 70), 0), ("cat", (40, 30, 95, 75), 0)][: i % 3] for i in range(7)}
AUGMENTATION = SSDAugmentation(64, subtract_mean=False)


def test_a_folder_s_split_may_begin_with_a_year(tmp_path, monkeypatch):
    """As in evaluation. And "~" is the home folder."""
    make_voc(tmp_path / "boxes", OBJECTS, split="2024_train")
    monkeypatch.setenv("HOME", str(tmp_path))
    images, classes = samples.open_images("~/boxes", splits=["2024_train"])
    assert (len(images), classes) == (7, ("cat", "dog"))


@pytest.fixture
def images(tmp_path):
    return VOCDetection(make_voc(tmp_path, OBJECTS, split="train"), [("", "train")])


class TestShuffle:
    @pytest.mark.parametrize(("n", "orders"), [(1, 1), (7, 4), (100, 4)])
    def test_every_item_once_in_each_epoch_whose_order_differs(self, n, orders):
        """Two epochs of two seeds."""
        shuffles = samples.Shuffle(n, seed=0), samples.Shuffle(n, seed=1)
        epochs = [tuple(shuffle[start + i] for i in range(n)) for shuffle in shuffles for start in (0, n)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert len(set(epochs)) == orders

    def test_weights_decide_how_often_an_item_is_drawn(self):
        """In each epoch as often as its share says, up to one; over many epochs exactly."""
        weights = np.array([1.0, 2.0, 5.0, 0.5, 1.5])
        order, expected = samples.Shuffle(5, 0, weights), weights / weights.sum() * 5
        epochs = np.array([order[position] for position in range(5 * 2000)]).reshape(2000, 5)
        counts = np.stack([(epochs == item).sum(axis=1) for item in range(5)], axis=1)
        assert (np.abs(counts - expected) < 1).all()
        np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.05)


def test_rare_classes_weigh_more(tmp_path):
    """Of 16 images 16 contain a person and 4 a bird: weights 1 and sqrt(16 / 4)."""
    objects = {f"p{i:02}": [("person", (5, 5, 60, 70), 0)] + [("bird", (9, 9, 50, 50), 0)] * (i < 4) for i in range(16)}
    objects["empty"] = []
    images, _ = samples.open_images(str(make_voc(tmp_path, objects, split="train")))
    expected = [(17 / 4) ** 0.5] * 4 + [(17 / 16) ** 0.5] * 12 + [1]
    np.testing.assert_allclose(samples.balancing_weights(images), expected)


def test_too_little_shared_memory_is_refused(monkeypatch):
    """16 batches of 32 images take 235 MB, and Docker has 64."""
    net = build_ssd("train", width=0.05)
    monkeypatch.setattr(Path, "is_dir", lambda path: str(path) == "/dev/shm")
    for free, fits in ((64, False), (234, False), (235, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free << 20))
        with nullcontext() if fits else pytest.raises(InputError, match="need 235 MB of shared memory.*--shm-size"):
            samples.check_shared_memory(4, 32, net)
        samples.check_shared_memory(0, 32, net)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # with torchrun, two processes of half as many
    refused("need 469 MB", samples.check_shared_memory, 4, 32, net)


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_the_ranks_partition_the_batch(world):
    shares = zip(*(samples.run_batches(3, 6, 8, Ranks(rank, rank, world)) for rank in range(world)), strict=True)
    assert [sum(batch, []) for batch in shares] == list(samples.run_batches(3, 6, 8, Ranks()))


@pytest.mark.parametrize("weights", [None, np.arange(1, 8)])
def test_a_position_has_one_sample_and_an_image_many(images, weights):
    """Whatever was asked for before."""
    straight, other = (samples.TrainingSamples(images, AUGMENTATION, 3, weights) for _ in range(2))
    drawn = [straight[position] for position in range(21)]
    again = {position: other[position] for position in np.random.RandomState(0).permutation(21).tolist()}
    assert_same(drawn, [again[position] for position in range(21)])
    assert len({image.numpy().tobytes() for image, _, _ in drawn}) > 14  # of 7 images


def test_images_are_rgb(tmp_path):
    folder = make_voc(tmp_path, {"a": []}, split="train")
    cv2.imwrite(str(folder / "JPEGImages" / "a.jpg"), np.full((80, 100, 3), (0, 0, 255), np.uint8))  # red in BGR
    augmentation = SSDAugmentation(64, max_expand=1, channel_shuffle=0, subtract_mean=False)
    image, target, _ = samples.TrainingSamples(VOCDetection(folder, [("", "train")]), augmentation, 0)[0]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (64, 64, 3))
    assert image[..., 0].float().mean() > 2 * image[..., 2].float().mean()
    assert (target.dtype, tuple(target.shape)) == (torch.float32, (0, 5))


def test_usable_rows_are_cut_to_the_image_and_have_an_area():
    inside, beyond, outside = [0.1, 0.2, 0.3, 0.4, 5], [-0.5, -0.5, 0.5, 1.5, 6], [1.1, 0.1, 1.3, 0.5, 9]
    empty, inverted = [0.4, 0.1, 0.4, 0.5, 7], [0.6, 0.1, 0.4, 0.5, 8]
    found = samples.usable_rows([inside, beyond, empty, inverted, outside])
    assert np.array_equal(found, np.array([inside, [0, 0, 0.5, 1, 6]], np.float32))
    assert samples.usable_rows([]).shape == (0, 5)


def test_a_batch_has_the_targets_of_the_criterion(images, priors300):
    criterion, data = MultiBoxLoss(21), samples.TrainingSamples(images, AUGMENTATION, 3)
    batch = [data[position] for position in range(5)]
    stack, targets, indices = zip(*batch, strict=True)
    matched = criterion.match_targets(list(targets), priors300)
    found = samples.MatchedBatch(criterion, priors300)(batch)
    assert_same(found, (torch.stack(stack), *matched, torch.tensor(indices)))


@pytest.mark.parametrize(("settings", "words"), [
    ({"classes": ["dog", "cat", "dog"]}, "dog is listed twice"),
    ({"splits": ["nothing"]}, "nothing.txt"),
    ({"dataset": "nowhere"}, "--dataset nowhere"),
    ({"dataset": "COCO", "splits": ["a", "b"]}, "COCO takes one split"),
])  # fmt: skip
def test_what_cannot_be_opened(tmp_path, settings, words):
    folder = make_voc(tmp_path, OBJECTS, split="train")
    refused(words, samples.open_images, **{"dataset": str(folder), **settings})
    for path in (folder / "Annotations").iterdir():
        path.write_text("<annotation>")
    refused(r"no readable annotation contains an object; .*p0\.xml: ", samples.open_images, str(folder))
