"""Augmentation: boxes that fit the pixels, and the distributions of the paper."""

import colorsys
import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import slow_formulas as slow
import torch
from synthetic import make_voc

from data import SSDAugmentation, VOCDetection
from utils import augmentations as augmentation
from utils.augmentations import (
    Window,
    boxes_in_window,
    distort,
    draw_crop,
    draw_frame,
    draw_window,
    picture_region,
    warp,
)

MEAN = (104, 117, 123)
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def rng(seed):
    return np.random.default_rng(seed)


def random_boxes(generator, n):
    """Corners as fractions [n, 4], float32."""
    corner = generator.uniform(0, 0.8, (n, 2))
    size = generator.uniform(0.03, 0.5, (n, 2))
    return np.hstack([corner, np.minimum(corner + size, 1)]).astype(np.float32)


def painted(width, height, boxes, ground=0):
    """A black picture with a solid rectangle for each of up to three boxes (pixels, whole numbers)."""
    image = np.full((height, width, 3), ground, np.uint8)
    for (x1, y1, x2, y2), colour in zip(boxes, COLOURS, strict=False):
        image[y1:y2, x1:x2] = colour
    return image


def extent(mask):
    """Corners of the smallest box around the true pixels, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.fixture
def colours_off(monkeypatch):
    monkeypatch.setattr(augmentation, "distort", lambda image, *_: image)


class TestBoxesAndPixels:
    @pytest.mark.parametrize(("width", "height"), [(500, 375), (120, 300), (900, 700)])
    def test_boxes_lie_on_their_rectangles(self, colours_off, width, height):
        """Three rectangles in the three primary colours, apart from each other: label i is channel i."""
        pixels = np.array(
            [[0.05, 0.1, 0.3, 0.45], [0.4, 0.2, 0.9, 0.5], [0.2, 0.6, 0.7, 0.95]] * np.array([width, height] * 2)
        ).astype(int)
        boxes = (pixels / np.array([width, height] * 2)).astype(np.float32)
        image = painted(width, height, pixels)
        seen = 0
        for seed in range(150):
            augment = SSDAugmentation(300, (0, 0, 0), subtract_mean=False, rng=rng(seed))
            result, found, labels = augment(image, boxes, np.arange(3))
            for box, label in zip(found, labels, strict=True):
                mask = result[..., label] > 127
                if min(box[2:] - box[:2]) * 300 < 2:  # may fall between two pixels
                    continue
                assert abs(extent(mask) - box * 300).max() <= 1.01, seed
                seen += 1
        assert seen > 200

    def test_labels_follow_their_boxes_also_where_some_are_dropped(self, colours_off):
        pixels = np.array([[10, 10, 110, 110], [300, 20, 420, 120], [150, 250, 350, 350]])
        boxes = (pixels / np.array([500, 375] * 2)).astype(np.float32)
        kept = set()
        for seed in range(100):
            augment = SSDAugmentation(300, (0, 0, 0), subtract_mean=False, rng=rng(seed))
            order = rng(seed).permutation(3)
            result, found, labels = augment(painted(500, 375, pixels), boxes[order], order)
            kept.add(len(labels))
            for box, label in zip(found, labels, strict=True):
                x, y = ((box[:2] + box[2:]) / 2 * 300).astype(int)
                assert result[min(y, 299), min(x, 299), label] > 127
        assert kept == {1, 2, 3}

    def test_invariants(self):
        """Whatever is drawn: boxes within the picture, with area, in the stated types, at least one of them."""
        image = np.random.RandomState(0).randint(0, 256, (60, 80, 3), dtype=np.uint8)
        for seed in range(300):
            generator = rng(seed)
            boxes = random_boxes(generator, generator.integers(1, 8))
            labels = generator.integers(0, 20, len(boxes)).astype(np.float32)
            out, found, kept = SSDAugmentation(64, MEAN, rng=generator)(image, boxes, labels)
            assert (out.shape, out.dtype, found.dtype) == ((64, 64, 3), np.float32, np.float32)
            assert 1 <= len(found) == len(kept) <= len(boxes)
            assert found.min() >= 0
            assert found.max() <= 1
            assert (found[:, 2:] > found[:, :2]).all()
            assert set(kept) <= set(labels)

    def test_a_picture_without_objects(self):
        image = np.random.RandomState(0).randint(0, 256, (60, 80, 3), dtype=np.uint8)
        for seed in range(30):
            out, boxes, labels = SSDAugmentation(64, MEAN, rng=rng(seed))(image, np.zeros((0, 4)), np.zeros(0))
            assert (out.shape, boxes.shape, labels.shape) == ((64, 64, 3), (0, 4), (0,))

    def test_input_is_left_alone(self):
        image, boxes = painted(80, 60, [[10, 10, 50, 40]]), np.array([[0.1, 0.2, 0.6, 0.7]], np.float32)
        before = image.copy(), boxes.copy()
        for seed in range(20):
            SSDAugmentation(64, MEAN, rng=rng(seed))(image, boxes, np.zeros(1))
        assert np.array_equal(image, before[0])
        assert np.array_equal(boxes, before[1])

    def test_tiny_and_extreme_pictures(self):
        for (height, width), seed in itertools.product(((1, 1), (1, 400), (400, 1), (2, 3)), range(20)):
            image = np.full((height, width, 3), 200, np.uint8)
            out, boxes, _ = SSDAugmentation(64, MEAN, rng=rng(seed))(image, np.array([[0, 0, 1, 1.0]]), np.zeros(1))
            assert out.shape == (64, 64, 3)
            assert np.isfinite(out).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()


class TestKept:
    @pytest.mark.parametrize("seed", range(3))
    def test_objects_stay_exactly_where_their_centre_lies_strictly_inside(self, seed):
        generator = rng(seed)
        dropped = 0
        for _ in range(200):
            boxes = random_boxes(generator, 6)
            window, kept = draw_window(generator, 400, 300, boxes)
            pixels = boxes.astype(float) * [400, 300, 400, 300]
            for box, stays in zip(pixels, kept, strict=True):
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                inside = window.x < x < window.x + window.width and window.y < y < window.y + window.height
                assert stays == inside
                dropped += not stays
        assert dropped > 100

    @pytest.mark.parametrize("limit", [0.1, 0.5, 0.9])
    def test_the_overlap_limit_is_enforced(self, monkeypatch, limit):
        """The reference draws the limit and then doesn't look at it."""
        monkeypatch.setattr(augmentation, "CROP_LIMITS", (limit,))
        generator, canvas = rng(0), Window(0, 0, 400, 300)
        crops = 0
        for _ in range(200):
            large = [*generator.uniform(0, 0.05, 2), *generator.uniform(0.9, 1, 2)]
            boxes = np.vstack([random_boxes(generator, 2), large]) * [400, 300, 400, 300]
            window, _ = draw_crop(generator, canvas, boxes)
            if window == canvas:
                continue
            crops += 1
            crop = (window.x, window.y, window.x + window.width, window.y + window.height)
            assert max(slow.iou(crop, box) for box in boxes) >= limit
        assert crops > 30

    def test_objects_outside_the_picture_end_nothing(self):
        """No crop can hold their centre; the whole picture is left."""
        for seed in range(20):
            window, kept = draw_crop(rng(seed), Window(0, 0, 100, 100), np.array([[150.0, 150, 180, 180]]))
            assert window == Window(0, 0, 100, 100)
            assert len(kept) == 1


class TestGeometry:
    def test_the_choices_have_equal_odds(self):
        """An object that fills the picture: the whole of it comes out once in seven."""
        box = np.array([[0.0, 0.0, 400, 300]])  # crops of it overlap it by their area
        generator, canvas = rng(1), Window(0, 0, 400, 300)
        windows = [draw_crop(generator, canvas, box)[0] for _ in range(3000)]
        shares = [w.width * w.height / 120_000 for w in windows]
        whole = np.mean([share == 1 for share in shares])
        # Vain tries give the whole another chance: a little above 1/7.
        assert 0.12 < whole < 0.21
        assert min(shares) < 0.15

    def test_crops_have_the_papers_sizes_and_aspects(self):
        generator = rng(2)
        windows = [draw_crop(generator, Window(0, 0, 400, 300), np.zeros((0, 4)))[0] for _ in range(2000)]
        crops = np.array([(w.x, w.y, w.width, w.height) for w in windows if w.width < 400])
        assert 0.82 < len(crops) / 2000 < 0.89  # 6 of 7
        x, y, width, height = crops.T
        assert (x.min() >= 0, y.min() >= 0) == (True, True)
        assert ((x + width).max() <= 400, (y + height).max() <= 300) == (True, True)
        assert 120 <= width.min() < 130
        assert 90 <= height.min() < 100
        assert 0.5 <= (height / width).min() < 0.53
        assert 1.9 < (height / width).max() <= 2
        free = x / (400 - width)  # the place is uniform
        assert abs(np.quantile(free, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.05

    @pytest.mark.parametrize("smallest", [0.7, 1.0])
    def test_crops_can_be_kept_large(self, smallest):
        no_boxes, shares = np.zeros((0, 4)), []
        for seed in range(400):
            window = draw_window(rng(seed), 400, 300, no_boxes, max_expand=1.0, min_crop=smallest)[0]
            shares += [window.width / 400, window.height / 300]
        assert smallest <= min(shares) < smallest + 0.02 and max(shares) <= 1

    def test_expansion(self, monkeypatch):
        monkeypatch.setattr(
            augmentation, "draw_crop", lambda _, canvas, boxes, smallest: (canvas, np.ones(len(boxes), bool))
        )
        generator = rng(3)
        windows = [draw_window(generator, 400, 300, np.zeros((0, 4)))[0] for _ in range(4000)]
        expanded = [w for w in windows if w.width > 400]
        assert 0.46 < len(expanded) / 4000 < 0.54
        ratio = np.array([w.width / 400 for w in expanded])
        assert np.allclose(ratio, [w.height / 300 for w in expanded])
        assert abs(np.quantile(ratio, [0, 0.25, 0.5, 0.75, 1]) - [1, 1.75, 2.5, 3.25, 4]).max() < 0.12
        for place in ([-w.x / (w.width - 400) for w in expanded], [-w.y / (w.height - 300) for w in expanded]):
            assert abs(np.quantile(place, [0, 0.25, 0.5, 0.75, 1]) - [0, 0.25, 0.5, 0.75, 1]).max() < 0.05
        assert 0.46 < np.mean([w.mirrored for w in windows]) < 0.54

    def test_expansion_can_be_limited(self, monkeypatch):
        monkeypatch.setattr(
            augmentation, "draw_crop", lambda _, canvas, boxes, smallest: (canvas, np.ones(len(boxes), bool))
        )
        generator = rng(4)
        widths = [draw_window(generator, 100, 100, np.zeros((0, 4)), 2.0)[0].width for _ in range(500)]
        assert 190 < max(widths) <= 200
        assert {draw_window(generator, 100, 100, np.zeros((0, 4)), 1.0)[0].width for _ in range(50)} == {100}

    @pytest.mark.parametrize("aspect", [16 / 9, 9 / 16])
    @pytest.mark.parametrize(("width", "height"), [(400, 300), (200, 300), (640, 360)])
    def test_half_of_the_windows_are_frames(self, width, height, aspect):
        boxes = np.array([[0.1, 0.2, 0.5, 0.9], [0.6, 0.1, 0.7, 0.2], [0.9, 0.9, 1.0, 1.0]])
        frames = 0
        for seed in range(400):
            plain, before = draw_window(rng(seed), width, height, boxes, 2.0)
            window, kept = draw_window(rng(seed), width, height, boxes, 2.0, frame_aspect=aspect)
            if (window.width, window.height) == (plain.width, plain.height):
                continue
            frames += 1
            assert window.width / window.height == pytest.approx(aspect)
            assert (window.corners[:2] <= plain.corners[:2] + 1e-9).all()
            assert (window.corners[2:] >= plain.corners[2:] - 1e-9).all()
            # One side stays; the other reaches beyond the picture only where the picture or the window does.
            assert window.width == pytest.approx(plain.width) or window.height == pytest.approx(plain.height)
            for low, high, old_low, old_high, extent in (
                (*window.corners[[0, 2]], *plain.corners[[0, 2]], width),
                (*window.corners[[1, 3]], *plain.corners[[1, 3]], height),
            ):
                if high - low <= extent:
                    assert low >= min(0, old_low) - 1e-9 and high <= max(extent, old_high) + 1e-9
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2 * [width, height]
            seen = ((centre > window.corners[:2]) & (centre < window.corners[2:])).all(axis=1)
            assert np.array_equal(kept, seen) and (kept | ~before).all()
        assert 150 < frames < 250

    def test_a_frame_lies_anywhere_around_its_window(self):
        window = Window(150.0, 0.0, 100.0, 200.0)
        starts = [draw_frame(rng(seed), window, 1000, 200, 2.0).x for seed in range(300)]
        assert min(starts) == 0 and max(starts) > 145 and 25 < np.mean(starts) < 50
        # At the edge of a picture as large as the frame there is one place.
        assert draw_frame(rng(0), Window(300.0, 0.0, 100.0, 200.0), 400, 200, 2.0) == Window(0.0, 0.0, 400.0, 200.0)

    def test_filling_is_the_mean_and_no_colour_step_touches_it(self):
        """Beyond half a source pixel around the picture, where the warp blends."""
        image = np.random.RandomState(0).randint(0, 256, (75, 100, 3), dtype=np.uint8)
        filled = 0
        for seed in range(60):
            out, _, _ = SSDAugmentation(90, MEAN, subtract_mean=False, rng=rng(seed))(
                image, np.zeros((0, 4)), np.zeros(0)
            )
            minus, _, _ = SSDAugmentation(90, MEAN, rng=rng(seed))(image, np.zeros((0, 4)), np.zeros(0))
            assert np.array_equal(minus, out.astype(np.float32) - np.array(MEAN, np.float32))
            window, _ = draw_window(rng(seed), 100, 75, np.zeros((0, 4)))
            centres = (np.arange(90) + 0.5) / 90
            x = window.x + (centres[::-1] if window.mirrored else centres) * window.width
            y = window.y + centres * window.height
            outside = ((x < -0.6) | (x > 100.6))[None, :] | ((y < -0.6) | (y > 75.6))[:, None]
            assert (out[outside] == MEAN).all()
            filled += outside.any()
        assert filled > 15

    def test_the_picture_is_coloured_up_to_its_edge(self, monkeypatch):
        """The region that the colour steps get covers exactly the pixels whose centre lies on the picture."""
        monkeypatch.setattr(augmentation, "distort", lambda image, *_: np.full_like(image, 255))
        for seed in range(60):
            window, _ = draw_window(rng(seed), 100, 75, np.zeros((0, 4)))
            out, _, _ = SSDAugmentation(90, (0, 0, 0), subtract_mean=False, rng=rng(seed))(
                np.zeros((75, 100, 3), np.uint8), np.zeros((0, 4)), np.zeros(0)
            )
            centres = (np.arange(90) + 0.5) / 90
            x = window.x + (centres[::-1] if window.mirrored else centres) * window.width
            y = window.y + centres * window.height
            on_picture = ((x > 0) & (x < 100))[None, :] & ((y > 0) & (y < 75))[:, None]
            assert np.array_equal(out[..., 0] == 255, on_picture)

    def test_warp_equals_bilinear_sampling(self):
        """A smooth picture, sampled pixel by pixel."""
        rows, columns = np.mgrid[0:75, 0:100]
        image = np.stack([rows * 3, columns * 2, rows + columns], axis=-1).astype(np.uint8)
        window = Window(20.3, 11.7, 61.0, 40.5)
        for mirrored in (False, True):
            out = warp(image, replace(window, mirrored=mirrored), 48, (0, 0, 0)).astype(float)
            for i, j in itertools.product(range(0, 48, 5), range(0, 48, 5)):
                x = window.x + (47 - j if mirrored else j) * window.width / 48 + window.width / 96 - 0.5
                y = window.y + (i + 0.5) * window.height / 48 - 0.5
                assert out[i, j] == pytest.approx([y * 3, x * 2, x + y], abs=1.2)

    def test_the_whole_picture_is_what_the_base_transform_sees(self):
        image = cv2.resize(np.random.RandomState(0).randint(0, 256, (9, 12, 3), dtype=np.uint8), (500, 375))
        out = warp(image, Window(0, 0, 500, 375), 300, MEAN)
        assert abs(out.astype(int) - cv2.resize(image, (300, 300))).max() <= 2

    def test_mirror_is_exact(self):
        image = np.random.RandomState(0).randint(0, 256, (75, 100, 3), dtype=np.uint8)
        boxes = random_boxes(rng(0), 5)
        for window in (Window(0, 0, 100, 75), Window(-40, -10, 200, 150), Window(10, 20, 50, 50)):
            mirrored = replace(window, mirrored=True)
            plain = warp(image, window, 64, MEAN)
            assert np.array_equal(warp(image, mirrored, 64, MEAN), plain[:, ::-1])
            straight, turned = (boxes_in_window(boxes, w, 100, 75) for w in (window, mirrored))
            assert np.allclose(
                turned, np.stack([1 - straight[:, 2], straight[:, 1], 1 - straight[:, 0], straight[:, 3]], 1)
            )
            region, turned_region = picture_region(window, 100, 75, 64), picture_region(mirrored, 100, 75, 64)
            assert turned_region[0] == region[0]
            assert (turned_region[1].start, turned_region[1].stop) == (64 - region[1].stop, 64 - region[1].start)

    def test_boxes_are_cut_to_the_window(self):
        boxes = np.array([[0.1, 0.1, 0.9, 0.5], [0.0, 0.0, 0.3, 0.3]], np.float32)
        out = boxes_in_window(boxes, Window(20, 30, 50, 60), 100, 100)
        assert np.allclose(out, [[0, 0, 1, 1 / 3], [0, 0, 0.2, 0]], atol=1e-6)
        expanded = boxes_in_window(boxes, Window(-100, -50, 200, 200), 100, 100)
        assert np.allclose(expanded, [[0.55, 0.3, 0.95, 0.5], [0.5, 0.25, 0.65, 0.4]], atol=1e-6)


class TestRandomness:
    def test_the_generator_decides_everything(self):
        image = np.random.RandomState(0).randint(0, 256, (75, 100, 3), dtype=np.uint8)
        boxes = random_boxes(rng(0), 4)
        runs = [SSDAugmentation(64, MEAN, rng=rng(seed))(image, boxes, np.arange(4)) for seed in (5, 5, 6)]
        assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
        assert not np.array_equal(runs[0][0], runs[2][0])

    def test_without_one_each_has_its_own(self):
        image = np.random.RandomState(0).randint(0, 256, (75, 100, 3), dtype=np.uint8)
        np.random.seed(0)
        first = SSDAugmentation(64)(image, np.zeros((0, 4)), np.zeros(0))[0]
        np.random.seed(0)
        assert not np.array_equal(first, SSDAugmentation(64)(image, np.zeros((0, 4)), np.zeros(0))[0])

    def test_workers_and_epochs_draw_differently(self, tmp_path):
        """A course's loop: a DataLoader with workers over VOCDetection. Each worker gets a copy of the augmentation."""
        folder = make_voc(tmp_path, {"a": [("dog", (10, 10, 90, 70), 0)]}, split="train")
        (folder / "ImageSets" / "Main" / "train.txt").write_text("a\na\n")
        dataset = VOCDetection(folder, [("", "train")], SSDAugmentation(64, channel_shuffle=0))
        loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=lambda batch: batch[0][0])
        first, second = list(loader), list(loader)
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], second[0])


def largest_gap(a, b):
    """Kolmogorov-Smirnov: largest distance of two empirical distributions."""
    points = np.sort(np.concatenate([a, b]))
    a, b = np.sort(a), np.sort(b)
    return abs(np.searchsorted(a, points, "right") / len(a) - np.searchsorted(b, points, "right") / len(b)).max()


class TestColours:
    """Each with probability 1/2: brightness +-32, contrast and saturation x0.5-1.5, hue +-18 of 360."""

    @pytest.mark.parametrize("grey", [0, 60, 128, 230, 255])
    def test_brightness_and_contrast(self, grey):
        """On grey the other steps do nothing, so each draw is contrast * (grey + brightness), in either order."""
        generator = rng(grey)
        pixel = np.full((1, 1, 3), grey, np.uint8)
        drawn = np.array([distort(pixel, generator)[0, 0] for _ in range(4000)])
        assert (drawn == drawn[:, :1]).all()  # stays grey
        r = np.random.RandomState(grey)
        brightness = np.where(r.rand(4000) < 0.5, r.uniform(-32, 32, 4000), 0)
        contrast = np.where(r.rand(4000) < 0.5, r.uniform(0.5, 1.5, 4000), 1)
        # Contrast last: the HSV steps in between saturate the brighter picture.
        first = r.rand(4000) < 0.5
        expected = np.where(first, contrast * (grey + brightness), contrast * (grey + brightness).clip(0, 255))
        assert largest_gap(drawn[:, 0], np.rint(expected).clip(0, 255)) < 0.05

    def test_saturation_and_hue(self):
        """Of the draws that left the value alone: hue and saturation in float, of the untouched picture's."""
        generator = rng(0)
        pixel = np.array([[[100, 100, 180]]], np.uint8)  # BGR: hue 0, saturation 0.44
        drawn = [distort(pixel, generator, channel_shuffle=0)[0, 0] for _ in range(6000)]
        hsv = np.array([colorsys.rgb_to_hsv(*(out[::-1] / 255)) for out in drawn if abs(int(out.max()) - 180) <= 1])
        assert 1200 < len(hsv) < 2000  # a quarter, and some by chance
        hue = (hsv[:, 0] * 360 + 180) % 360 - 180
        ratio = hsv[:, 1] / colorsys.rgb_to_hsv(180, 100, 100)[1]
        assert 16 < hue.max() < 20
        assert -20 < hue.min() < -16
        assert 0.46 < (abs(hue) > 0.9).mean() / 0.95 < 0.58
        assert abs(np.quantile(ratio, [0.01, 0.99]) - [0.52, 1.48]).max() < 0.03
        assert 0.44 < (abs(ratio - 1) > 0.02).mean() / 0.96 < 0.58
        turned, scaled = hue[abs(hue) > 2], ratio[abs(ratio - 1) > 0.05]
        assert abs(np.mean(turned)) < 1.5
        assert abs(np.quantile(abs(turned), 0.5) - 10) < 1.2
        assert abs(np.quantile(scaled, [0.25, 0.75]) - [0.75, 1.25]).max() < 0.07

    @pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.5, 5 / 12), (1.0, 5 / 6)])
    def test_channel_shuffle(self, probability, share):
        """One order in six is the one that the channels had."""
        generator = rng(7)
        pixel = np.array([[[20, 70, 130]]], np.uint8)  # far enough apart to stay in order through all other steps
        orders = [tuple(np.argsort(distort(pixel, generator, probability)[0, 0])) for _ in range(2000)]
        assert abs(np.mean([order != (0, 1, 2) for order in orders]) - share) <= (0.04 if share else 0)
        if share:
            assert len(set(orders)) == 6

    def test_all_pixels_change_alike(self):
        image = np.repeat(np.random.RandomState(0).randint(0, 256, (1, 7, 3), dtype=np.uint8), 5, axis=0)
        for seed in range(20):
            out = distort(image, rng(seed))
            assert (out == out[:1]).all()
            assert (out.shape, out.dtype) == (image.shape, np.uint8)
