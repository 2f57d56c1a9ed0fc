"""The order of samples and their contents: pure functions of the position in the run."""

import cv2
import numpy as np
import pytest
import torch
from synthetic import make_voc

from data import SSDAugmentation, VOCDetection
from layers.modules import MultiBoxLoss
from training.distributed import Ranks
from training.samples import (
    InMemory,
    MatchedBatch,
    RunBatches,
    Shuffle,
    TrainingSamples,
    balancing_weights,
    open_images,
    usable_rows,
)
from utils.errors import InputError

OBJECTS = {f"p{i}": [("dog", (5 + i, 5, 60 + i, 70), 0), ("cat", (40, 30, 95, 75), 0)][: i % 3] for i in range(7)}


@pytest.fixture
def images(tmp_path):
    return VOCDetection(make_voc(tmp_path, OBJECTS, split="train"), [("", "train")])


def samples(images, seed=3):
    return TrainingSamples(images, SSDAugmentation(64, subtract_mean=False), seed)


def assert_same_samples(some, others):
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[2] == other[2]


class TestShuffle:
    @pytest.mark.parametrize("n", [1, 7, 100])
    def test_every_item_once_in_each_epoch(self, n):
        order = Shuffle(n, seed=0)
        drawn = [order[position] for position in range(4 * n)]
        assert all(sorted(drawn[epoch * n :][:n]) == list(range(n)) for epoch in range(4))

    def test_epochs_and_seeds_differ(self):
        epochs = [tuple(Shuffle(50, seed)[50 * epoch + i] for i in range(50)) for seed in (0, 1) for epoch in (0, 1)]
        assert len(set(epochs)) == 4

    @pytest.mark.parametrize("weights", [None, np.arange(1, 10)])
    def test_positions_in_any_order(self, weights):
        order, asked = Shuffle(9, 5, weights), Shuffle(9, 5, weights)
        in_turn = [order[position] for position in range(36)]
        assert [asked[int(p)] for p in np.random.RandomState(0).permutation(36)] == [
            in_turn[p] for p in np.random.RandomState(0).permutation(36)
        ]

    def test_weights_decide_how_often_an_item_is_drawn(self):
        """In each epoch as often as its share says, up to one; over many epochs exactly."""
        weights = np.array([1.0, 2.0, 5.0, 0.5, 1.5])
        order, expected = Shuffle(5, 0, weights), weights / weights.sum() * 5
        epochs = np.array([[order[epoch * 5 + i] for i in range(5)] for epoch in range(2000)])
        counts = np.stack([(epochs == item).sum(axis=1) for item in range(5)], axis=1)
        assert (np.abs(counts - expected) < 1).all()
        np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.05)


def test_rare_classes_weigh_more(tmp_path):
    """Of 16 images 16 contain a person and 4 a bird: weights 1 and sqrt(16 / 4)."""
    objects = {f"p{i:02}": [("person", (5, 5, 60, 70), 0)] + [("bird", (9, 9, 50, 50), 0)] * (i < 4) for i in range(16)}
    objects["empty"] = []
    images, _ = open_images(str(make_voc(tmp_path, objects, split="train")))
    expected = [(17 / 4) ** 0.5] * 4 + [(17 / 16) ** 0.5] * 12 + [1]
    np.testing.assert_allclose(balancing_weights(images), expected)
    order = Shuffle(17, 0, balancing_weights(images))
    drawn = [order[position] for position in range(17 * 100)]
    assert sum(item < 4 for item in drawn) / len(drawn) == pytest.approx(sum(expected[:4]) / sum(expected), abs=0.01)


class TestRunBatches:
    def test_a_resumed_run_continues(self):
        whole = list(RunBatches(0, 9, 4, Ranks()))
        assert [position for batch in whole for position in batch] == list(range(36))
        assert whole[6:] == list(RunBatches(6, 9, 4, Ranks()))
        assert list(RunBatches(9, 9, 4, Ranks())) == []

    @pytest.mark.parametrize("world", [2, 4])
    def test_the_shares_of_the_ranks_partition_the_batch(self, world):
        shares = [list(RunBatches(3, 6, 8, Ranks(rank, rank, world))) for rank in range(world)]
        together = [[position for share in shares for position in share[i]] for i in range(3)]
        assert together == list(RunBatches(3, 6, 8, Ranks()))


class TestTrainingSamples:
    def test_a_sample(self, images):
        image, target, index = samples(images)[2]
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (64, 64, 3))
        assert (target.dtype, target.shape[1]) == (torch.float32, 5)
        assert 0 <= index < 7

    def test_a_position_has_one_sample_and_an_image_many(self, images):
        straight, other = samples(images), samples(images)
        items = [straight[position] for position in range(21)]
        order = np.random.RandomState(0).permutation(21)
        assert_same_samples([other[int(p)] for p in order], [items[p] for p in order])
        seen = {}
        for image, _, index in items:
            seen.setdefault(index, []).append(image)
        assert all(len(views) == 3 and not torch.equal(views[0], views[1]) for views in seen.values())

    def test_the_number_of_workers_changes_nothing(self, images):
        runs = []
        for workers in (0, 2):
            loader = torch.utils.data.DataLoader(
                samples(images), batch_sampler=RunBatches(1, 5, 3, Ranks()), num_workers=workers, collate_fn=tuple
            )
            runs.append([item for batch in loader for item in batch])
        assert len(runs[0]) == 12
        assert_same_samples(*runs)

    def test_images_are_rgb(self, tmp_path):
        folder = make_voc(tmp_path, {"a": []}, split="train")
        cv2.imwrite(str(folder / "JPEGImages" / "a.jpg"), np.full((80, 100, 3), (0, 0, 255), np.uint8))  # red in BGR
        augmentation = SSDAugmentation(64, max_expand=1, channel_shuffle=0, subtract_mean=False)
        image, _, _ = TrainingSamples(VOCDetection(folder, [("", "train")]), augmentation, 0)[0]
        assert image[..., 0].float().mean() > 2 * image[..., 2].float().mean()


def test_usable_rows_are_cut_to_the_image_and_have_an_area():
    rows = [
        [0.1, 0.2, 0.3, 0.4, 5],
        [-0.5, -0.5, 0.5, 1.5, 6],
        [0.4, 0.1, 0.4, 0.5, 7],
        [0.6, 0.1, 0.4, 0.5, 8],
        [1.1, 0.1, 1.3, 0.5, 9],
    ]
    assert np.array_equal(usable_rows(rows), np.array([[0.1, 0.2, 0.3, 0.4, 5], [0, 0, 0.5, 1, 6]], np.float32))
    assert usable_rows([]).shape == (0, 5)


def test_a_batch_has_the_targets_of_the_criterion(images, priors300):
    criterion, data = MultiBoxLoss(21), samples(images)
    batch = [data[position] for position in range(5)]
    stacked, loc_t, conf_t, indices = MatchedBatch(criterion, priors300)(batch)
    expected = criterion.match_targets([target for _, target, _ in batch], priors300)
    assert torch.equal(stacked, torch.stack([image for image, _, _ in batch]))
    assert torch.equal(loc_t, expected[0])
    assert torch.equal(conf_t, expected[1])
    assert indices.tolist() == [index for _, _, index in batch]


def test_images_in_memory_are_those_of_the_files(images):
    memory = InMemory(images, threads=2)
    for index in range(7):
        assert np.array_equal(memory.pull_image(index), images.pull_image(index))
        assert memory.image_path(index) == images.image_path(index)
        assert memory.pull_target(index, 100, 80) == images.pull_target(index, 100, 80)


class TestOpenImages:
    def test_classes_are_those_of_the_annotations(self, tmp_path):
        images, classes = open_images(str(make_voc(tmp_path, OBJECTS, split="train")))
        assert classes == ("cat", "dog")
        assert [row[4] for row in images.pull_target(2, 100, 80)] == [1, 0]

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"classes": ["dog", "cat", "dog"]}, "dog is listed twice"),
            ({"splits": ["nothing"]}, "nothing.txt"),
            ({"dataset": "nowhere"}, "--dataset nowhere"),
            ({"dataset": "COCO", "splits": ["a", "b"]}, "COCO takes one split"),
        ],
    )
    def test_what_cannot_be_opened(self, tmp_path, settings, words):
        folder = make_voc(tmp_path, OBJECTS, split="train")
        with pytest.raises(InputError, match=words):
            open_images(**{"dataset": str(folder), **settings})
