"""The order of samples: pure functions of the position in the run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthetic import make_voc

import training.run
from data import SSDAugmentation, VOCDetection
from layers.modules import MultiBoxLoss
from train import get_args_parser
from training.samples import InMemory, MatchedBatch, RunBatches, Shuffle, TrainingSamples, usable

OBJECTS = {f"p{i}": [("dog", (5 + i, 5, 60 + i, 70), 0), ("cat", (40, 30, 95, 75), 0)][: i % 3] for i in range(7)}


@pytest.fixture
def pictures(tmp_path):
    return VOCDetection(make_voc(tmp_path, OBJECTS, split="train"), [("", "train")])


def samples(pictures, seed=3):
    return TrainingSamples(pictures, SSDAugmentation(64, subtract_mean=False), seed, lambda position: 64)


def first(batch):
    return batch[0]


class TestShuffle:
    @pytest.mark.parametrize("n", [1, 7, 100])
    def test_every_item_once_an_epoch(self, n):
        order = Shuffle(n, seed=0)
        drawn = [order[position] for position in range(4 * n)]
        for epoch in range(4):
            assert sorted(drawn[epoch * n : (epoch + 1) * n]) == list(range(n))

    def test_another_order_in_each_epoch_and_for_each_seed(self):
        order = Shuffle(50, seed=0)
        epochs = [[order[epoch * 50 + place] for place in range(50)] for epoch in range(3)]
        other = [Shuffle(50, seed=1)[place] for place in range(50)]
        assert len({tuple(epoch) for epoch in [*epochs, other]}) == 4

    def test_asking_out_of_turn_changes_nothing(self):
        order, asked = Shuffle(9, seed=5), Shuffle(9, seed=5)
        in_turn = [order[position] for position in range(36)]
        for position in np.random.RandomState(0).permutation(36):
            assert asked[int(position)] == in_turn[position]


class TestRunBatches:
    def test_batches_follow_on_each_other(self):
        batches = list(RunBatches(0, 5, 4))
        assert [position for batch in batches for position in batch] == list(range(20))
        assert len(RunBatches(0, 5, 4)) == 5

    def test_a_resumed_run_continues(self):
        assert list(RunBatches(0, 9, 4))[6:] == list(RunBatches(6, 9, 4))
        assert list(RunBatches(9, 9, 4)) == []

    @pytest.mark.parametrize("world", [1, 2, 4])
    def test_the_shares_of_the_ranks_partition_the_batch(self, world):
        shares = [list(RunBatches(3, 6, 8, rank, world)) for rank in range(world)]
        for iteration, whole in enumerate(RunBatches(3, 6, 8)):
            together = [position for rank in range(world) for position in shares[rank][iteration]]
            assert together == whole
            assert {len(share[iteration]) for share in shares} == {8 // world}


class TestTrainingSamples:
    def test_an_item(self, pictures):
        image, target, index = samples(pictures)[2]
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (64, 64, 3))
        assert (target.dtype, target.shape[1]) == (torch.float32, 5)
        assert 0 <= index < 7

    def test_a_position_gives_the_same_sample_whatever_came_before(self, pictures):
        straight, other = samples(pictures), samples(pictures)
        items = [straight[position] for position in range(21)]
        for position in np.random.RandomState(0).permutation(21):
            image, target, index = other[int(position)]
            assert torch.equal(image, items[position][0])
            assert torch.equal(target, items[position][1])
            assert index == items[position][2]

    def test_a_picture_looks_different_in_each_epoch(self, pictures):
        data = samples(pictures)
        seen = {}
        for position in range(21):
            image, _, index = data[position]
            seen.setdefault(index, []).append(image)
        assert all(len(images) == 3 and not torch.equal(images[0], images[1]) for images in seen.values())

    def test_the_number_of_workers_changes_nothing(self, pictures):
        runs = []
        for workers in (0, 1, 3):
            loader = torch.utils.data.DataLoader(
                samples(pictures), batch_sampler=RunBatches(1, 5, 3), num_workers=workers, collate_fn=tuple
            )
            runs.append([item for batch in loader for item in batch])
        for run in runs[1:]:
            assert len(run) == 12
            for a, b in zip(runs[0], run, strict=True):
                assert torch.equal(a[0], b[0])
                assert torch.equal(a[1], b[1])
                assert a[2] == b[2]

    def test_pictures_are_rgb(self, tmp_path):
        folder = make_voc(tmp_path, {"a": []}, split="train")
        import cv2

        red = np.zeros((80, 100, 3), np.uint8)
        red[..., 2] = 255  # in OpenCV's order
        cv2.imwrite(str(folder / "JPEGImages" / "a.jpg"), red)
        augmentation = SSDAugmentation(64, max_expand=1, channel_shuffle=0, subtract_mean=False)
        image, _, _ = TrainingSamples(VOCDetection(folder, [("", "train")]), augmentation, 0, lambda position: 64)[0]
        assert image[..., 0].float().mean() > 2 * image[..., 2].float().mean()

    def test_the_side_of_the_input_may_change_during_the_run(self, pictures):
        augmentation = SSDAugmentation(64, subtract_mean=False)
        data = TrainingSamples(pictures, augmentation, 0, lambda position: 32 if position < 4 else 64)
        assert [len(data[position][0]) for position in (3, 4, 0, 9)] == [32, 64, 32, 64]


def test_the_flags_of_the_augmentation_reach_it(pictures, priors300, monkeypatch):
    flags = "--max_expand 2 --min_crop 0.6 --channel_shuffle 0.1 --frame_aspect 1.5 --num_workers 0"
    monkeypatch.setattr(training.run, "priors_at", lambda net, size: priors300)
    run = SimpleNamespace(
        args=get_args_parser().parse_args(flags.split()),
        net=None,
        pictures=pictures,
        criterion=MultiBoxLoss(21),
        max_iter=3,
        ranks=SimpleNamespace(rank=0, world=1),
        device=torch.device("cpu"),
    )
    found = training.run.build_loader(run, run.args, 0).dataset.augmentation
    assert (found.max_expand, found.min_crop, found.channel_shuffle, found.frame_aspect) == (2, 0.6, 0.1, 1.5)
    assert not found.subtract_mean


def test_usable_cuts_boxes_to_the_picture_and_drops_those_without_area():
    rows = [
        [0.1, 0.2, 0.3, 0.4, 5],
        [-0.5, -0.5, 0.5, 1.5, 6],
        [0.4, 0.1, 0.4, 0.5, 7],
        [0.6, 0.1, 0.4, 0.5, 8],
        [1.1, 0.1, 1.3, 0.5, 9],
        [-0.3, 0.1, -0.1, 0.5, 10],
    ]
    expected = np.array([[0.1, 0.2, 0.3, 0.4, 5], [0, 0, 0.5, 1, 6]], np.float32)
    assert np.array_equal(usable(rows), expected)
    assert usable([]).shape == (0, 5)


def test_matched_batch_gives_the_targets_of_the_criterion(pictures, priors300):
    criterion, data = MultiBoxLoss(21), samples(pictures)
    batch = [data[position] for position in range(5)]
    images, loc_t, conf_t, indices = MatchedBatch(criterion, {64: priors300})(batch)
    expected = criterion.match_targets([target for _, target, _ in batch], priors300)
    assert torch.equal(images, torch.stack([image for image, _, _ in batch]))
    assert torch.equal(loc_t, expected[0])
    assert torch.equal(conf_t, expected[1])
    assert indices.tolist() == [index for _, _, index in batch]


def test_pictures_in_memory_are_those_of_the_files(pictures):
    memory = InMemory(pictures, threads=2)
    assert len(memory) == 7
    for index in range(7):
        assert np.array_equal(memory.pull_image(index), pictures.pull_image(index))
        assert memory.image_path(index) == pictures.image_path(index)
        assert memory.pull_target(index, 100, 80) == pictures.pull_target(index, 100, 80)
