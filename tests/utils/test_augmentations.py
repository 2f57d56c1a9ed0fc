"""Augmentation: boxes that fit the pixels, and the distributions of the paper."""

import colorsys

import numpy as np
import pytest
import slow_formulas as slow
import torch

from utils import augmentations
from utils.augmentations import SSDAugmentation, Window, distort, draw_crop, draw_frame, draw_window, warp

MEAN = (104, 117, 123)
NO_BOXES = np.zeros((0, 4))
CANVAS = Window(0, 0, 400, 300)


def rng(seed):
    return np.random.default_rng(seed)


def random_image(width=100, height=75):
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)


def random_boxes(generator, n):
    """Corners as fractions [n, 4], float32."""
    corner = generator.uniform(0, 0.8, (n, 2))
    size = generator.uniform(0.03, 0.5, (n, 2))
    return np.hstack([corner, np.minimum(corner + size, 1)]).astype(np.float32)


def pixel_centers(window, size):
    """Source coordinates of the result's pixel centers, edges of the source's pixels being integers: x, y [size]."""
    centers = (np.arange(size) + 0.5) / size
    return window.x + (centers[::-1] if window.mirrored else centers) * window.width, window.y + centers * window.height


def assert_uniform(values, low, high, tolerance):
    quarters = np.linspace(low, high, 5)
    np.testing.assert_allclose(np.quantile(values, np.linspace(0, 1, 5)), quarters, atol=tolerance)


class TestBoxesAndPixels:
    @pytest.mark.parametrize(("width", "height"), [(500, 375), (120, 300), (900, 700)])
    def test_boxes_and_labels_fit_their_rectangles(self, monkeypatch, width, height):
        """Three separate rectangles in the three primary colors: label i is channel i."""
        monkeypatch.setattr(augmentations, "distort", lambda image, *_: image)
        scale = np.array([width, height] * 2)
        pixels = (np.array([[0.05, 0.1, 0.3, 0.45], [0.4, 0.2, 0.9, 0.5], [0.2, 0.6, 0.7, 0.95]]) * scale).astype(int)
        image = np.zeros((height, width, 3), np.uint8)
        for label, (x1, y1, x2, y2) in enumerate(pixels):
            image[y1:y2, x1:x2, label] = 255
        numbers, checked = set(), 0
        for seed in range(150):
            order = rng(seed).permutation(3)
            augment = SSDAugmentation(300, (0, 0, 0), subtract_mean=False, rng=rng(seed))
            result, boxes, labels = augment(image, pixels[order] / scale, order)
            numbers.add(len(labels))
            for box, label in zip(boxes, labels, strict=True):
                if min(box[2:] - box[:2]) * 300 < 2:  # may fall between two pixels
                    continue
                rows, columns = np.nonzero(result[..., label] > 127)
                extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert abs(extent - box * 300).max() <= 1.01, seed
                checked += 1
        assert checked > 200
        assert numbers == {1, 2, 3}

    @pytest.mark.parametrize("size", [(80, 60), (1, 1), (1, 400), (400, 1), (2, 3)])
    def test_invariants(self, size):
        image = random_image(*size)
        before = image.copy()
        for seed in range(100):
            generator = rng(seed)
            boxes = random_boxes(generator, generator.integers(0, 8))
            labels = generator.integers(0, 20, len(boxes)).astype(np.float32)
            copy = boxes.copy()
            out, found, kept = SSDAugmentation(64, MEAN, rng=generator)(image, boxes, labels)
            assert (out.shape, out.dtype, found.dtype) == ((64, 64, 3), np.float32, np.float32)
            assert np.isfinite(out).all()
            assert min(1, len(boxes)) <= len(found) == len(kept) <= len(boxes) and set(kept) <= set(labels)
            assert ((found >= 0) & (found <= 1)).all() and (found[:, 2:] > found[:, :2]).all()
            assert np.array_equal(boxes, copy) and np.array_equal(image, before)


class TestGeometry:
    def test_objects_are_kept_if_their_center_is_strictly_inside(self):
        generator, dropped = rng(0), 0
        for _ in range(500):
            boxes = random_boxes(generator, 6)
            window, kept = draw_window(generator, 400, 300, boxes)
            centers = (boxes[:, :2] + boxes[:, 2:].astype(float)) / 2 * [400, 300]
            assert (kept == ((centers > window.corners[:2]) & (centers < window.corners[2:])).all(axis=1)).all()
            dropped += (~kept).sum()
        assert dropped > 250
        # No crop contains the center of an object outside of the image.
        window, kept = draw_crop(generator, CANVAS, np.array([[450.0, 150, 480, 180]]))
        assert (window, len(kept)) == (CANVAS, 1)

    @pytest.mark.parametrize("limit", [0.1, 0.3, 0.5, 0.7, 0.9])
    def test_the_overlap_limits_are_enforced(self, monkeypatch, limit):
        """The reference leaves out 0.5, and ignores the limit that it draws."""
        assert augmentations.CROP_LIMITS == (0.1, 0.3, 0.5, 0.7, 0.9, None)
        monkeypatch.setattr(augmentations, "CROP_LIMITS", (limit,))
        generator, crops = rng(0), 0
        for _ in range(200):
            large = [*generator.uniform(0, 0.05, 2), *generator.uniform(0.9, 1, 2)]
            boxes = np.vstack([random_boxes(generator, 2), large]) * [400, 300, 400, 300]
            window, _ = draw_crop(generator, CANVAS, boxes)
            if window != CANVAS:
                crops += 1
                assert max(slow.iou(window.corners, box) for box in boxes) >= limit
        assert crops > 30

    def test_crops_have_the_papers_sizes_and_aspect_ratios(self):
        generator = rng(2)
        for smallest in (0.7, 1.0):
            windows = [draw_crop(generator, CANVAS, NO_BOXES, smallest)[0] for _ in range(400)]
            sides = [side for window in windows for side in (window.width / 400, window.height / 300)]
            assert smallest <= min(sides) < smallest + 0.02 and max(sides) <= 1
        windows = [draw_crop(generator, CANVAS, NO_BOXES)[0] for _ in range(2000)]
        crops = [window for window in windows if window != CANVAS]
        assert 0.82 < len(crops) / 2000 < 0.89  # 6 of 7 choices
        x, y, width, height = np.array([(w.x, w.y, w.width, w.height) for w in crops]).T
        assert min(x.min(), y.min()) >= 0 and (x + width).max() <= 400 and (y + height).max() <= 300
        assert 120 <= width.min() < 130 and 90 <= height.min() < 100
        assert 0.5 <= (height / width).min() < 0.53 and 1.9 < (height / width).max() <= 2
        assert_uniform(x / (400 - width), 0, 1, 0.05)

    @pytest.mark.parametrize("largest", [4.0, 2.0])
    def test_expansion_and_mirror(self, monkeypatch, largest):
        monkeypatch.setattr(augmentations, "draw_crop", lambda _, canvas, boxes, *__: (canvas, np.ones(0, bool)))
        generator = rng(3)
        windows = [draw_window(generator, 400, 300, NO_BOXES, largest)[0] for _ in range(4000)]
        assert 0.46 < np.mean([window.mirrored for window in windows]) < 0.54
        expanded = [window for window in windows if window.width > 400]
        assert 0.46 < len(expanded) / 4000 < 0.54
        ratio = np.array([window.width / 400 for window in expanded])
        np.testing.assert_allclose(ratio, [window.height / 300 for window in expanded])
        assert_uniform(ratio, 1, largest, 0.12)
        assert_uniform([-window.x / (window.width - 400) for window in expanded], 0, 1, 0.05)
        assert_uniform([-window.y / (window.height - 300) for window in expanded], 0, 1, 0.05)
        assert all(draw_window(generator, 400, 300, NO_BOXES, 1.0)[0].width == 400 for _ in range(99))

    @pytest.mark.parametrize(("size", "aspect"), [((400, 300), 16 / 9), ((200, 300), 9 / 16), ((640, 360), 16 / 9)])
    def test_half_of_the_windows_are_extended_to_frames(self, size, aspect):
        """One side stays; the other one reaches beyond the image only if the image is smaller, or the window did."""
        boxes, frames = np.array([[0.1, 0.2, 0.5, 0.9], [0.6, 0.1, 0.7, 0.2], [0.9, 0.9, 1.0, 1.0]]), 0
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 * size
        for seed in range(400):
            plain, before = draw_window(rng(seed), *size, boxes, 2.0)
            window, kept = draw_window(rng(seed), *size, boxes, 2.0, frame_aspect=aspect)
            if (window.width, window.height) == (plain.width, plain.height):
                continue
            frames += 1
            assert window.width / window.height == pytest.approx(aspect)
            assert window.width == pytest.approx(plain.width) or window.height == pytest.approx(plain.height)
            (low, high), (inner_low, inner_high) = window.corners.reshape(2, 2), plain.corners.reshape(2, 2)
            assert (low <= inner_low + 1e-9).all() and (high >= inner_high - 1e-9).all()
            fits = high - low <= size
            assert (low >= np.minimum(0, inner_low) - 1e-9)[fits].all()
            assert (high <= np.maximum(size, inner_high) + 1e-9)[fits].all()
            assert (kept == ((centers > low) & (centers < high)).all(axis=1)).all() and (kept | ~before).all()
        assert 150 < frames < 250

    def test_a_frame_is_anywhere_around_its_window(self):
        window = Window(150.0, 0.0, 100.0, 200.0)
        starts = [draw_frame(rng(seed), window, 1000, 200, 2.0).x for seed in range(300)]
        assert min(starts) == 0 and max(starts) > 145 and 25 < np.mean(starts) < 50


class TestPixels:
    def test_color_steps_change_the_image_up_to_its_edge_and_leave_the_filling(self, monkeypatch):
        """Exactly the pixels whose center is on the image; the others have the mean, up to what the warp blends."""
        monkeypatch.setattr(augmentations, "distort", lambda image, *_: np.full_like(image, 255))
        image, filled = np.zeros((75, 100, 3), np.uint8), 0
        for seed in range(60):
            plain, minus, black = (
                SSDAugmentation(90, mean, subtract_mean=subtract, rng=rng(seed))(image, NO_BOXES, np.zeros(0))[0]
                for mean, subtract in ((MEAN, False), (MEAN, True), ((0, 0, 0), False))
            )
            assert np.array_equal(minus, plain.astype(np.float32) - np.array(MEAN, np.float32))
            x, y = pixel_centers(draw_window(rng(seed), 100, 75, NO_BOXES)[0], 90)
            on_image = ((x > 0) & (x < 100))[None, :] & ((y > 0) & (y < 75))[:, None]
            assert np.array_equal(black[..., 0] == 255, on_image)
            outside = ((x < -0.6) | (x > 100.6))[None, :] | ((y < -0.6) | (y > 75.6))[:, None]
            assert (plain[outside] == MEAN).all()
            filled += outside.any()
        assert filled > 15

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_warp_equals_bilinear_sampling(self, mirrored):
        rows, columns = np.mgrid[0:75, 0:100]
        image = np.stack([rows * 3, columns * 2, rows + columns], axis=-1).astype(np.uint8)
        window = Window(20.3, 11.7, 61.0, 40.5, mirrored)
        out = warp(image, window, 48, (0, 0, 0))
        x, y = np.meshgrid(*(axis - 0.5 for axis in pixel_centers(window, 48)))
        np.testing.assert_allclose(out, np.stack([y * 3, x * 2, x + y], axis=-1), atol=1.2)


class TestRandomness:
    def test_the_generator_decides_everything_or_torchs_seed(self):
        """Which a DataLoader sets for each of its workers and epochs. An earlier draw leaves nothing behind."""

        def draw(augment, seed=None):
            if seed is not None:
                torch.manual_seed(seed)
            return augment(random_image(), NO_BOXES, np.zeros(0))[0].tobytes()

        five, again, six = (draw(SSDAugmentation(64, rng=rng(seed))) for seed in (5, 5, 6))
        assert five == again != six
        first, second = SSDAugmentation(64), SSDAugmentation(64)
        with torch.device("meta"):  # a script may have made CUDA the default, which workers must not touch
            drawn = [draw(first, seed=0), draw(first), draw(second), draw(first, seed=1)]
        assert len(set(drawn)) == 4
        assert draw(first, seed=0) == drawn[0]


class TestColors:
    """Each with probability 1/2: brightness +-32, contrast and saturation x0.5-1.5, hue +-18 of 360."""

    @pytest.mark.parametrize("gray", [0, 60, 128, 230, 255])
    def test_brightness_and_contrast(self, gray):
        """On gray the other steps do nothing, so each draw is contrast * (gray + brightness), in either order."""
        generator = rng(gray)
        pixel = np.full((1, 1, 3), gray, np.uint8)
        drawn = np.array([distort(pixel, generator)[0, 0] for _ in range(4000)])
        assert (drawn == drawn[:, :1]).all()  # stays gray
        r = np.random.RandomState(gray)
        brightness = np.where(r.rand(4000) < 0.5, r.uniform(-32, 32, 4000), 0)
        contrast = np.where(r.rand(4000) < 0.5, r.uniform(0.5, 1.5, 4000), 1)
        # With the contrast last, the HSV steps in between saturate the brighter image.
        first = r.rand(4000) < 0.5
        expected = np.where(first, contrast * (gray + brightness), contrast * (gray + brightness).clip(0, 255))
        expected, drawn = np.sort(np.rint(expected).clip(0, 255)), np.sort(drawn[:, 0])
        points = np.concatenate([drawn, expected])
        shares = (np.searchsorted(values, points, "right") / 4000 for values in (drawn, expected))
        assert abs(np.subtract(*shares)).max() < 0.05  # Kolmogorov-Smirnov

    def test_saturation_and_hue(self):
        """Of the draws that left the value unchanged, compared with the original's hue and saturation."""
        generator = rng(0)
        pixel = np.array([[[100, 100, 180]]], np.uint8)  # BGR: hue 0, saturation 0.44
        drawn = [distort(pixel, generator, channel_shuffle=0)[0, 0] for _ in range(6000)]
        hsv = np.array([colorsys.rgb_to_hsv(*(out[::-1] / 255)) for out in drawn if abs(int(out.max()) - 180) <= 1])
        assert 1200 < len(hsv) < 2000  # a quarter, and some by chance
        hue = (hsv[:, 0] * 360 + 180) % 360 - 180
        ratio = hsv[:, 1] / colorsys.rgb_to_hsv(180, 100, 100)[1]
        assert 16 < hue.max() < 20 and -20 < hue.min() < -16
        assert 0.46 < (abs(hue) > 0.9).mean() / 0.95 < 0.58
        assert abs(np.quantile(ratio, [0.01, 0.99]) - [0.52, 1.48]).max() < 0.03
        assert 0.44 < (abs(ratio - 1) > 0.02).mean() / 0.96 < 0.58
        turned, scaled = hue[abs(hue) > 2], ratio[abs(ratio - 1) > 0.05]
        assert abs(np.mean(turned)) < 1.5 and abs(np.quantile(abs(turned), 0.5) - 10) < 1.2
        assert abs(np.quantile(scaled, [0.25, 0.75]) - [0.75, 1.25]).max() < 0.07

    @pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.5, 5 / 12), (1.0, 5 / 6)])
    def test_channel_shuffle(self, probability, share):
        """One order in six is the original one."""
        generator = rng(7)
        pixel = np.array([[[20, 70, 130]]], np.uint8)  # the other steps don't change the order of such values
        orders = [tuple(np.argsort(distort(pixel, generator, probability)[0, 0])) for _ in range(2000)]
        assert abs(np.mean([order != (0, 1, 2) for order in orders]) - share) <= (0.04 if share else 0)
        assert len(set(orders)) == (6 if share else 1)
