"""Crops of the training objects: what is on them, in what order, and the base that learns to tell them apart."""

import re
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.config import RGB_MEANS
from ssd import build_ssd
from training import crops as crops_module
from training.crops import MIN_SIDE, ObjectCrops, background_window, object_window, pretrain_base
from utils.errors import InputError
from weights.checkpoint import read_file

RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)  # of classes 0, 1, 2
GREY = 110
SIZE = 24


class Pictures:
    """A data set in memory: grey pictures with a rectangle of its class's colour on each object's box.

    boxes: for each picture a list of (class, (x1, y1, x2, y2) in pixels counted from 0).
    """

    def __init__(self, boxes, size=(160, 120)):
        self.boxes, self.images = boxes, []
        for of_picture in boxes:
            image = np.full((size[1], size[0], 3), GREY, np.uint8)
            for label, (x1, y1, x2, y2) in of_picture:
                image[y1:y2, x1:x2] = (RED, GREEN, BLUE)[label][::-1]  # pictures come in BGR
            self.images.append(image)

    def __len__(self):
        return len(self.boxes)

    def pull_image(self, index):
        return self.images[index]

    def pull_target(self, index, width, height):
        scale = np.array([width, height, width, height])
        return [[*(np.array(box) / scale), label] for label, box in self.boxes[index]]


def pictures_of(count):
    """Pictures with one object each, of classes 0, 1, 2 in turn, in several places and shapes."""
    shapes = ((40, 40), (60, 32), (34, 60), (50, 44))
    boxes = []
    for number in range(count):
        (width, height), x, y = shapes[number % 4], number * 7 % 90, number * 11 % 55
        boxes.append([(number % 3, (x, y, x + width, y + height))])
    return Pictures(boxes)


def settings(**changes):
    return SimpleNamespace(
        **{"crop_passes": 2, "crop_size": SIZE, "lr": 3e-3, "seed": 0, "num_workers": 0, "width": 0.05, **changes}
    )


def small_net(classes=3, width=0.05):
    torch.manual_seed(0)
    return build_ssd("train", 300, classes + 1, width=width, batch_norm=True)


def interrupted(one_pass, passes):
    """one_pass for so many times, then an interruption."""
    left = [one_pass] * passes

    def attempt(*arguments, **options):
        if not left:
            raise InterruptedError
        return left.pop()(*arguments, **options)

    return attempt


def overlaps(square, boxes):
    """IoU of a Window with each box, written out."""
    x1, y1, x2, y2 = square.x, square.y, square.x + square.width, square.y + square.height
    ious = []
    for a, b, c, d in boxes:
        common = max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b))
        ious.append(common / ((x2 - x1) * (y2 - y1) + (c - a) * (d - b) - common))
    return np.array(ious)


@pytest.fixture
def windows(monkeypatch):
    """The (picture, window) of each crop that is made from now on."""
    made, warp = [], crops_module.warp

    def recording(image, window, *more):
        made.append((image, window))
        return warp(image, window, *more)

    monkeypatch.setattr(crops_module, "warp", recording)
    return made


class TestObjectCrops:
    def test_a_crop_shows_its_object_in_rgb_and_has_its_class(self):
        """The crop's middle lies on the object, whose colour tells the class."""
        crops, labels = ObjectCrops(pictures_of(12), SIZE, seed=1), []
        for position in range(150):
            crop, label = crops[position]
            assert crop.shape == (SIZE, SIZE, 3)
            assert crop.dtype == torch.uint8
            middle = crop[SIZE // 2, SIZE // 2].int()
            if label:
                assert middle.argmax() == label - 1
                assert middle.max() - middle.min() > 25
            else:
                grey = crop.int().amax(dim=2) - crop.int().amin(dim=2) < 10
                assert grey.float().mean() > 0.5
            labels.append(label)
        assert set(labels) == {0, 1, 2, 3}

    def test_beyond_the_picture_lies_the_mean(self, monkeypatch):
        monkeypatch.setattr(crops_module, "distort", lambda crop, rng, channel_shuffle: crop)
        monkeypatch.setattr(crops_module, "BACKGROUND_SHARE", 0)
        crops = ObjectCrops(Pictures([[(0, (0, 0, 160, 120))]]), SIZE, seed=0)
        colours = {tuple(pixel) for position in range(20) for pixel in crops[position][0].reshape(-1, 3).tolist()}
        assert RGB_MEANS in colours
        assert RED in colours

    def test_a_tenth_is_background_away_from_objects(self, windows):
        two = [(0, (10, 10, 50, 60)), (2, (90, 40, 150, 100))]
        pictures = Pictures([two, two[:1], two[1:], two])
        crops = ObjectCrops(pictures, 8, seed=0)
        labels = np.array([crops[position][1] for position in range(3000)])
        assert (labels == 0).mean() == pytest.approx(0.1, abs=0.017)  # 3 standard deviations
        for label, (image, window) in zip(labels, windows, strict=True):
            number = next(i for i, other in enumerate(pictures.images) if other is image)
            boxes = [box for _, box in pictures.boxes[number]]
            assert label > 0 or overlaps(window, boxes).max() <= 0.1

    def test_without_room_for_background_the_object_is_shown(self, monkeypatch):
        monkeypatch.setattr(crops_module, "BACKGROUND_SHARE", 1)
        monkeypatch.setattr(crops_module, "background_window", lambda *_: None)
        crops = ObjectCrops(pictures_of(3), SIZE, seed=0)
        assert sorted(crops[position][1] for position in range(3)) == [1, 2, 3]

    def test_small_objects_are_left_out(self):
        side = MIN_SIDE
        sizes = [(side, side), (side - 1, 60), (60, side - 1), (side + 5, side)]
        pictures = Pictures([[(i % 3, (5, 5, 5 + w, 5 + h))] for i, (w, h) in enumerate(sizes)])
        crops = ObjectCrops(pictures, SIZE, seed=0)
        assert crops.objects == [(0, 0), (3, 0)]
        assert len(crops) == 2

    def test_every_object_once_a_pass(self, windows, monkeypatch):
        monkeypatch.setattr(crops_module, "BACKGROUND_SHARE", 0)
        pictures = pictures_of(10)
        crops = ObjectCrops(pictures, 8, seed=0)
        for position in range(30):
            crops[position]
        shown = [next(i for i, other in enumerate(pictures.images) if other is image) for image, _ in windows]
        passes = [shown[start : start + 10] for start in (0, 10, 20)]
        assert all(sorted(numbers) == list(range(10)) for numbers in passes)
        assert len(set(map(tuple, passes))) == 3

    def test_a_crop_is_a_function_of_seed_and_position(self):
        pictures = pictures_of(9)
        crops, again = ObjectCrops(pictures, SIZE, seed=4), ObjectCrops(pictures, SIZE, seed=4)
        in_turn = [crops[position] for position in range(40)]
        for position in np.random.RandomState(0).permutation(40):
            crop, label = again[int(position)]
            assert label == in_turn[position][1]
            assert torch.equal(crop, in_turn[position][0])
        other = ObjectCrops(pictures, SIZE, seed=5)
        assert sum(torch.equal(other[p][0], in_turn[p][0]) for p in range(40)) == 0
        assert not torch.equal(in_turn[3][0], in_turn[12][0])  # another crop of what may be the same object

    def test_workers_change_nothing(self):
        crops = ObjectCrops(pictures_of(9), SIZE, seed=4)
        loader = torch.utils.data.DataLoader(crops, 4, sampler=range(3, 23), num_workers=2)
        for start, (images, labels) in zip(range(3, 23, 4), loader, strict=True):
            for place in range(4):
                crop, label = crops[start + place]
                assert torch.equal(images[place], crop)
                assert labels[place] == label


class TestWindows:
    def test_an_object_window_is_a_square_on_the_object(self):
        rng = np.random.default_rng(0)
        scales, shifts, mirrored = [], [], 0
        for _ in range(1000):
            corner, extent = rng.uniform(-50, 400, 2), rng.uniform(20, 300, 2)
            window = object_window(rng, np.hstack([corner, corner + extent]))
            assert window.width == window.height
            scales.append(window.width / extent.max())
            centre = np.array([window.x, window.y]) + window.width / 2
            shifts.append((centre - corner - extent / 2) / window.width)
            mirrored += window.mirrored
        assert 0.75 <= min(scales) < 0.77
        assert 1.33 < max(scales) <= 1.35
        assert 0.118 < np.abs(shifts).max() <= 0.12 + 1e-9
        assert np.abs(np.mean(shifts, axis=0)).max() < 0.01
        assert mirrored == pytest.approx(500, abs=50)

    @pytest.mark.parametrize("size", [(500, 375), (60, 300)])
    def test_a_background_window_lies_in_the_picture_beside_the_objects(self, size):
        rng, (width, height) = np.random.default_rng(1), size
        found = 0
        for _ in range(300):
            corners = rng.uniform(0, 0.7, (3, 2)) * size
            boxes = np.hstack([corners, corners + rng.uniform(20, 0.6 * min(size), (3, 2))]).astype(np.float32)
            window = background_window(rng, width, height, boxes)
            if window is None:
                continue
            found += 1
            assert window.width == window.height
            assert 0.2 * min(size) <= window.width <= 0.8 * min(size)
            assert 0 <= window.x <= width - window.width
            assert 0 <= window.y <= height - window.height
            assert overlaps(window, boxes).max() <= 0.1 + 1e-6
        assert found > 200

    def test_no_background_where_there_is_no_room(self):
        """Objects of all sizes everywhere."""
        steps = [(x, y, x + s, y + s) for s in (20, 30, 45, 70) for x in range(0, 90, 5) for y in range(0, 90, 5)]
        boxes = np.array(steps, np.float32)
        assert background_window(np.random.default_rng(0), 100, 100, boxes) is None

    def test_a_picture_without_objects_is_all_background(self):
        assert background_window(np.random.default_rng(0), 100, 80, np.empty((0, 4), np.float32)) is not None


class TestPretraining:
    def test_the_base_learns_and_the_rest_stays(self, tmp_path, capsys):
        net = small_net()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        pretrain_base(net, pictures_of(192), settings(crop_passes=6), torch.device("cpu"), tmp_path / "crops.pth")
        shares = [float(share) for share in re.findall(r"pass \d of 6: ([\d.]+)", capsys.readouterr().out)]
        assert len(shares) == 6
        assert shares[0] < 0.6
        assert shares[-1] > 0.85  # chance is a third
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[key]) == (not key.startswith("vgg.")), key

    def test_an_interrupted_one_ends_bitwise_as_a_whole_one(self, tmp_path, capsys):
        pictures, device = pictures_of(70), torch.device("cpu")
        whole, resumed, file = small_net(), small_net(), tmp_path / "resumed.pth"
        pretrain_base(whole, pictures, settings(crop_passes=3), device, tmp_path / "whole.pth")

        with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(crops_module, "_one_pass", interrupted(crops_module._one_pass, passes=1))
            pretrain_base(small_net(), pictures, settings(crop_passes=3), device, file)
        capsys.readouterr()
        pretrain_base(resumed, pictures, settings(crop_passes=3, num_workers=1), device, file)
        said = capsys.readouterr().out
        assert str(file) in said
        assert "pass 1 of" not in said
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), key
        assert read_file(file)["passes"] == 3

    def test_a_finished_one_is_only_loaded(self, tmp_path, capsys):
        pictures, device, file = pictures_of(64), torch.device("cpu"), tmp_path / "crops.pth"
        first, second = small_net(), small_net()
        pretrain_base(first, pictures, settings(crop_passes=1), device, file)
        written = file.read_bytes()
        capsys.readouterr()
        pretrain_base(second, pictures, settings(crop_passes=1), device, file)
        assert "classified right" not in capsys.readouterr().out
        assert torch.equal(first.vgg[0].weight, second.vgg[0].weight)
        assert file.read_bytes() == written

    def test_other_ranks_compute_the_same_and_write_nothing(self, tmp_path, capsys):
        pictures, device = pictures_of(8), torch.device("cpu")
        first = small_net()
        second = deepcopy(first)
        torch.manual_seed(0)  # as train.py seeds every rank
        pretrain_base(first, pictures, settings(crop_passes=1), device, tmp_path / "crops.pth")
        capsys.readouterr()
        other = tmp_path / "other" / "crops.pth"  # where nothing could be written
        torch.manual_seed(0)
        pretrain_base(second, pictures, settings(crop_passes=1), device, other, writes=False)
        assert capsys.readouterr().out == ""
        assert torch.equal(first.vgg[0].weight, second.vgg[0].weight)

    @pytest.mark.parametrize("objects", [1, 5, 63])
    def test_fewer_objects_than_a_batch(self, objects, tmp_path, capsys):
        net = small_net()
        before = net.vgg[0].weight.clone()
        pretrain_base(net, pictures_of(objects), settings(crop_passes=2), torch.device("cpu"), tmp_path / "crops.pth")
        assert capsys.readouterr().out.count("classified right") == 2
        assert not torch.equal(net.vgg[0].weight, before)
        assert all(torch.isfinite(value).all() for value in net.state_dict().values())

    @pytest.mark.parametrize("boxes", [[], [[], []], [[(0, (5, 5, 20, 90))]]])
    def test_nothing_to_learn_from(self, boxes, tmp_path):
        """No pictures, no objects, none that is large enough."""
        file = tmp_path / "crops.pth"
        with pytest.raises(InputError) as caught:
            pretrain_base(small_net(), Pictures(boxes), settings(), torch.device("cpu"), file)
        assert "--crop_passes" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not file.exists()

    @pytest.mark.parametrize("other", [{"width": 0.1}, {"classes": 7}])
    def test_the_state_of_another_network(self, other, tmp_path):
        pictures, device, file = pictures_of(8), torch.device("cpu"), tmp_path / "crops.pth"
        pretrain_base(small_net(), pictures, settings(crop_passes=1), device, file)
        with pytest.raises(InputError) as caught:
            pretrain_base(small_net(**other), pictures, settings(), device, file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
