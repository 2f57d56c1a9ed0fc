"""Crops of the training objects: what they show, in what order, and the base that learns to tell them apart."""

import re

import numpy as np
import pytest
import slow_formulas as slow
import torch
from checks import refused
from test_train import assert_same

from data.config import RGB_MEANS
from ssd import build_ssd
from training import pretrain
from training.distributed import Ranks
from training.pretrain import ObjectCrops, background_window, object_window, pretrain_base
from weights.checkpoint import read_file

COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))  # of classes 0, 1, 2
SIZE = 24


class Images(list):
    """A data set in memory: gray images with a rectangle of its class's color on each object.

    Contains for each image a list of (class, (x1, y1, x2, y2) in pixels counted from 0).
    """

    def pull_image(self, index):
        image = np.full((120, 160, 3), 110, np.uint8)
        for label, (x1, y1, x2, y2) in self[index]:
            image[y1:y2, x1:x2] = COLORS[label][::-1]  # BGR
        return image

    def pull_target(self, index, width, height):
        return [[*(np.array(box) / [width, height, width, height]), label] for label, box in self[index]]


def images_of(count):
    """Images with one object each, of classes 0, 1, 2 in turn, in several places and shapes."""
    shapes = ((40, 40), (60, 32), (34, 60), (50, 44))
    places = [(n % 3, n * 7 % 90, n * 11 % 55, *shapes[n % 4]) for n in range(count)]
    return Images([(label, (x, y, x + width, y + height))] for label, x, y, width, height in places)


def small_net(classes=3, width=0.05):
    torch.manual_seed(0)
    return build_ssd("train", 300, classes + 1, width=width, batch_norm=True)


def train(net, images, path, passes=2, ranks=None, workers=0):
    ranks = ranks or Ranks()
    pretrain_base(net, ObjectCrops(images, SIZE, 0), ranks, path, passes, lr=3e-3, num_workers=workers)


class TestObjectCrops:
    def test_a_crop_shows_its_object_in_rgb_or_for_a_tenth_background(self):
        """The center of an object's crop lies on the object, whose color tells the class. The background is gray."""
        samples = ObjectCrops(images_of(12), SIZE, seed=1)
        crops, labels = zip(*(samples[position] for position in range(3000)), strict=True)
        crops, labels = torch.stack(crops), torch.tensor(labels)
        assert (crops.shape[1:], crops.dtype) == ((SIZE, SIZE, 3), torch.uint8)
        assert labels.unique().tolist() == [0, 1, 2, 3]
        is_background, middle = labels == 0, crops[:, SIZE // 2, SIZE // 2]
        assert torch.equal(middle.argmax(dim=1)[~is_background], labels[~is_background] - 1)
        spread = crops.amax(dim=3) - crops.amin(dim=3)
        assert spread[~is_background, SIZE // 2, SIZE // 2].min() > 25
        assert is_background.float().mean() == pytest.approx(0.1, abs=0.017)  # 3 standard deviations
        assert (spread[is_background] < 10).float().mean(dim=(1, 2)).min() > 0.3

    def test_outside_the_image_is_the_mean(self, monkeypatch):
        monkeypatch.setattr(pretrain, "distort", lambda crop, rng, channel_shuffle: crop)
        monkeypatch.setattr(pretrain, "BACKGROUND_SHARE", 0)
        crops = ObjectCrops(Images([[(0, (0, 0, 160, 120))]]), SIZE, seed=0)
        colors = {tuple(pixel) for position in range(20) for pixel in crops[position][0].reshape(-1, 3).tolist()}
        assert {RGB_MEANS, COLORS[0]} <= colors

    def test_a_crop_is_a_function_of_seed_and_position(self):
        images, order = images_of(9), np.random.RandomState(0).permutation(40).tolist()
        one, two, other = (ObjectCrops(images, SIZE, seed) for seed in (4, 4, 5))
        drawn, again = [one[position] for position in range(40)], {position: two[position] for position in order}
        assert_same(drawn, [again[position] for position in range(40)])
        assert not any(torch.equal(crop, other[position][0]) for position, (crop, _) in enumerate(drawn))


class TestWindows:
    def test_an_object_window_is_a_square_on_the_object(self):
        rng, box = np.random.default_rng(0), np.array([100, 50, 180, 90])
        windows = [object_window(rng, box) for _ in range(1000)]
        for window in windows:
            center = window.x + window.width / 2, window.y + window.height / 2
            assert window.width == window.height
            assert center == pytest.approx((140, 70), abs=0.12 * window.width + 1e-9)
        scales = [window.width / 80 for window in windows]
        assert (min(scales), max(scales)) == (pytest.approx(0.75, abs=0.01), pytest.approx(1.35, abs=0.01))
        assert np.mean([window.mirrored for window in windows]) == pytest.approx(0.5, abs=0.05)

    @pytest.mark.parametrize("size", [(500, 375), (60, 300)])
    def test_a_background_window_lies_in_the_image_beside_the_objects(self, size):
        rng, found = np.random.default_rng(1), 0
        for _ in range(300):
            corners = rng.uniform(0, 0.7, (3, 2)) * size
            boxes = np.hstack([corners, corners + rng.uniform(20, 0.6 * min(size), (3, 2))]).astype(np.float32)
            if window := background_window(rng, *size, boxes):
                found += 1
                assert 0.2 * min(size) <= window.width == window.height <= 0.8 * min(size)
                assert 0 <= window.x <= size[0] - window.width
                assert 0 <= window.y <= size[1] - window.height
                assert max(slow.iou(window.corners, box) for box in boxes) <= 0.1 + 1e-6
        assert found > 200

    def test_no_background_without_room(self):
        steps = [(x, y, x + s, y + s) for s in (20, 30, 45, 70) for x in range(0, 90, 5) for y in range(0, 90, 5)]
        assert background_window(np.random.default_rng(0), 100, 100, np.array(steps, np.float32)) is None


class TestPretraining:
    def test_the_base_learns_and_the_rest_stays(self, tmp_path, capsys):
        net = small_net()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        train(net, images_of(192), tmp_path / "crops.pth", passes=6)
        accuracy = [float(share) for share in re.findall(r"accuracy ([\d.]+)", capsys.readouterr().out)]
        assert len(accuracy) == 6
        assert accuracy[0] < 0.65
        assert accuracy[-1] > 0.7  # chance is a third
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[key]) == (not key.startswith("vgg.")), key

    def test_other_ranks_compute_the_same_and_write_nothing(self, tmp_path, capsys):
        first, second = small_net(), small_net()
        for net, rank in ((first, 0), (second, 1)):
            torch.manual_seed(0)  # as train.py seeds every rank
            train(net, images_of(8), tmp_path / str(rank), passes=1, ranks=Ranks(rank, rank, 2))
        assert capsys.readouterr().out.count("accuracy") == 1
        assert not (tmp_path / "1").exists()
        assert torch.equal(first.vgg[0].weight, second.vgg[0].weight)

    @pytest.mark.parametrize("boxes", [[], [[], []], [[(0, (5, 5, 24, 90))], [(0, (5, 5, 90, 24))]]])
    def test_nothing_to_learn_from(self, boxes, tmp_path):
        """No images, no objects, none that is 20 pixels wide and high."""
        refused("--crop_passes: .* 20 pixels", train, small_net(), Images(boxes), tmp_path / "crops.pth")
        assert not (tmp_path / "crops.pth").exists()

    @pytest.mark.parametrize(("change", "other"), [
        ({"passes": "x"}, {}), ({"passes": None}, {}), ({"optimizer": {}}, {}), ({"model": {}}, {}),
        ({}, {"width": 0.1}), ({}, {"classes": 7}),
    ], ids=str)  # fmt: skip
    def test_a_damaged_state_or_that_of_another_network(self, change, other, tmp_path):
        path = tmp_path / "crops.pth"
        train(small_net(), images_of(8), path, passes=1)
        torch.save({**read_file(path), **change}, path)
        refused(r"crops\.pth: damaged, or another network's", train, small_net(**other), images_of(8), path)
