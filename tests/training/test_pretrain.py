"""Crops of the training objects: what they show, in what order, and the base that learns to tell them apart."""

import re
from copy import deepcopy

import numpy as np
import pytest
import torch

from data.config import RGB_MEANS
from ssd import build_ssd
from training import pretrain
from training.distributed import Ranks
from training.pretrain import MIN_SIDE, ObjectCrops, background_window, object_window, pretrain_base
from utils.errors import InputError
from weights.checkpoint import read_file

RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)  # of classes 0, 1, 2
GRAY = 110
SIZE = 24


class Images:
    """A data set in memory: gray images with a rectangle of its class's color on each object's box.

    boxes: for each image a list of (class, (x1, y1, x2, y2) in pixels counted from 0).
    """

    def __init__(self, boxes, size=(160, 120)):
        self.boxes, self.images = boxes, []
        for rows in boxes:
            image = np.full((size[1], size[0], 3), GRAY, np.uint8)
            for label, (x1, y1, x2, y2) in rows:
                image[y1:y2, x1:x2] = (RED, GREEN, BLUE)[label][::-1]  # BGR
            self.images.append(image)

    def __len__(self):
        return len(self.boxes)

    def pull_image(self, index):
        return self.images[index]

    def pull_target(self, index, width, height):
        return [[*(np.array(box) / [width, height, width, height]), label] for label, box in self.boxes[index]]


def images_of(count):
    """Images with one object each, of classes 0, 1, 2 in turn, in several places and shapes."""
    shapes = ((40, 40), (60, 32), (34, 60), (50, 44))
    boxes = []
    for number in range(count):
        (width, height), x, y = shapes[number % 4], number * 7 % 90, number * 11 % 55
        boxes.append([(number % 3, (x, y, x + width, y + height))])
    return Images(boxes)


def small_net(classes=3, width=0.05):
    torch.manual_seed(0)
    return build_ssd("train", 300, classes + 1, width=width, batch_norm=True)


def train(net, images, path, passes=2, ranks=None, workers=0):
    settings = {"passes": passes, "crop_size": SIZE, "lr": 3e-3, "seed": 0, "num_workers": workers}
    pretrain_base(net, images, ranks or Ranks(), path, **settings)


def overlaps(square, boxes):
    """IoU of a Window with each box, written out."""
    x1, y1, x2, y2 = square.x, square.y, square.x + square.width, square.y + square.height
    ious = []
    for a, b, c, d in boxes:
        common = max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b))
        ious.append(common / ((x2 - x1) * (y2 - y1) + (c - a) * (d - b) - common))
    return np.array(ious)


class TestObjectCrops:
    def test_a_crop_shows_its_object_in_rgb_and_has_its_class(self):
        """The center of a crop lies on the object, whose color tells the class."""
        crops, labels = ObjectCrops(images_of(12), SIZE, seed=1), []
        for position in range(150):
            crop, label = crops[position]
            assert (tuple(crop.shape), crop.dtype) == ((SIZE, SIZE, 3), torch.uint8)
            middle = crop[SIZE // 2, SIZE // 2].int()
            if label:
                assert middle.argmax() == label - 1
                assert middle.max() - middle.min() > 25
            else:
                gray = crop.int().amax(dim=2) - crop.int().amin(dim=2) < 10
                assert gray.float().mean() > 0.5
            labels.append(label)
        assert set(labels) == {0, 1, 2, 3}

    def test_outside_the_image_is_the_mean(self, monkeypatch):
        monkeypatch.setattr(pretrain, "distort", lambda crop, rng, channel_shuffle: crop)
        monkeypatch.setattr(pretrain, "BACKGROUND_SHARE", 0)
        crops = ObjectCrops(Images([[(0, (0, 0, 160, 120))]]), SIZE, seed=0)
        colors = {tuple(pixel) for position in range(20) for pixel in crops[position][0].reshape(-1, 3).tolist()}
        assert {RGB_MEANS, RED} <= colors

    def test_a_tenth_is_background_away_from_objects(self, monkeypatch):
        windows, warp = [], pretrain.warp
        monkeypatch.setattr(
            pretrain, "warp", lambda image, window, *more: windows.append((image, window)) or warp(image, window, *more)
        )
        two = [(0, (10, 10, 50, 60)), (2, (90, 40, 150, 100))]
        images = Images([two, two[:1], two[1:], two])
        crops = ObjectCrops(images, 8, seed=0)
        labels = np.array([crops[position][1] for position in range(3000)])
        assert (labels == 0).mean() == pytest.approx(0.1, abs=0.017)  # 3 standard deviations
        for label, (image, window) in zip(labels, windows, strict=True):
            number = next(i for i, other in enumerate(images.images) if other is image)
            assert label > 0 or overlaps(window, [box for _, box in images.boxes[number]]).max() <= 0.1

    def test_small_objects_are_left_out(self):
        sizes = [(MIN_SIDE, MIN_SIDE), (MIN_SIDE - 1, 60), (60, MIN_SIDE - 1), (MIN_SIDE + 5, MIN_SIDE)]
        crops = ObjectCrops(Images([[(i % 3, (5, 5, 5 + w, 5 + h))] for i, (w, h) in enumerate(sizes)]), SIZE, seed=0)
        assert crops.objects == [(0, 0), (3, 0)]

    def test_a_crop_is_a_function_of_seed_and_position(self):
        images = images_of(9)
        in_turn = [ObjectCrops(images, SIZE, seed=4)[position] for position in range(40)]
        again = ObjectCrops(images, SIZE, seed=4)
        for position in np.random.RandomState(0).permutation(40):
            crop, label = again[int(position)]
            assert label == in_turn[position][1]
            assert torch.equal(crop, in_turn[position][0])
        assert not any(torch.equal(ObjectCrops(images, SIZE, seed=5)[p][0], in_turn[p][0]) for p in range(40))


class TestWindows:
    def test_an_object_window_is_a_square_on_the_object(self):
        rng = np.random.default_rng(0)
        scales, shifts, mirrored = [], [], 0
        for _ in range(1000):
            corner, extent = rng.uniform(-50, 400, 2), rng.uniform(20, 300, 2)
            window = object_window(rng, np.hstack([corner, corner + extent]))
            assert window.width == window.height
            scales.append(window.width / extent.max())
            center = np.array([window.x, window.y]) + window.width / 2
            shifts.append((center - corner - extent / 2) / window.width)
            mirrored += window.mirrored
        assert 0.75 <= min(scales) < 0.77
        assert 1.33 < max(scales) <= 1.35
        assert 0.118 < np.abs(shifts).max() <= 0.12 + 1e-9
        assert mirrored == pytest.approx(500, abs=50)

    @pytest.mark.parametrize("size", [(500, 375), (60, 300)])
    def test_a_background_window_lies_in_the_image_beside_the_objects(self, size):
        rng, (width, height), found = np.random.default_rng(1), size, 0
        for _ in range(300):
            corners = rng.uniform(0, 0.7, (3, 2)) * size
            boxes = np.hstack([corners, corners + rng.uniform(20, 0.6 * min(size), (3, 2))]).astype(np.float32)
            if (window := background_window(rng, width, height, boxes)) is None:
                continue
            found += 1
            assert 0.2 * min(size) <= window.width == window.height <= 0.8 * min(size)
            assert 0 <= window.x <= width - window.width
            assert 0 <= window.y <= height - window.height
            assert overlaps(window, boxes).max() <= 0.1 + 1e-6
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

    def test_an_interrupted_one_ends_bitwise_as_a_whole_one(self, tmp_path, capsys, monkeypatch):
        images, path = images_of(70), tmp_path / "resumed.pth"
        whole, resumed = small_net(), small_net()
        train(whole, images, tmp_path / "whole.pth", passes=3)
        save, saved = pretrain.save_file, []

        def die_after_the_first(contents, target):
            save(contents, target)
            saved.append(target)
            raise InterruptedError

        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(pretrain, "save_file", die_after_the_first)
            train(small_net(), images, path, passes=3)
        capsys.readouterr()
        train(resumed, images, path, passes=3, workers=1)
        said = capsys.readouterr().out
        assert f"resuming from {path}, after pass 1" in said
        assert said.count("accuracy") == 2
        assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
        assert read_file(path)["passes"] == 3

    def test_other_ranks_compute_the_same_and_write_nothing(self, tmp_path, capsys):
        first = small_net()
        second = deepcopy(first)
        for net, rank in ((first, 0), (second, 1)):
            torch.manual_seed(0)  # as train.py seeds every rank
            train(net, images_of(8), tmp_path / str(rank), passes=1, ranks=Ranks(rank, rank, 2))
        assert capsys.readouterr().out.count("accuracy") == 1
        assert not (tmp_path / "1").exists()
        assert torch.equal(first.vgg[0].weight, second.vgg[0].weight)

    @pytest.mark.parametrize("boxes", [[], [[], []], [[(0, (5, 5, 20, 90))]]])
    def test_nothing_to_learn_from(self, boxes, tmp_path):
        """No images, no objects, none that is large enough."""
        with pytest.raises(InputError, match="--crop_passes: no training object"):
            train(small_net(), Images(boxes), tmp_path / "crops.pth")
        assert not (tmp_path / "crops.pth").exists()

    @pytest.mark.parametrize("other", [{"width": 0.1}, {"classes": 7}])
    def test_the_state_of_another_network(self, other, tmp_path):
        train(small_net(), images_of(8), tmp_path / "crops.pth", passes=1)
        with pytest.raises(InputError, match=r"crops\.pth: damaged, or another network's"):
            train(small_net(**other), images_of(8), tmp_path / "crops.pth")
