"""Boxes and labels in images."""

from itertools import combinations

import cv2
import numpy as np
import pytest

from data import VOC_CLASSES
from inference import Detections, drawing
from inference.drawing import RIM, class_color, draw_detections, label_patch, text_color, text_size

GRAY = 128


def detections(*boxes, labels=None, scores=None):
    labels = np.full(len(boxes), 14) if labels is None else labels
    scores = np.linspace(0.9, 0.8, len(boxes)) if scores is None else scores
    names = [VOC_CLASSES[label] for label in labels]
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), scores.astype(np.float32), labels, names)


@pytest.fixture
def draw(monkeypatch):
    """Draw into a view of a gray image; returns it with the places of the labels, the highest score first."""
    places, place_label = [], drawing.place_label
    monkeypatch.setattr(drawing, "place_label", lambda *given: places.append(place_label(*given)) or places[-1])

    def draw(size, found):
        places.clear()
        image = np.full((size[1], size[0], 3), GRAY, np.uint8)[:, ::-1]
        draw_detections(image, found)
        return image, list(places)

    return draw


def is_apart(one, other):
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize(("size", "line"), [((320, 180), 2), ((1920, 1080), 4), ((3840, 2160), 8)])
def test_a_box_its_rim_and_its_label_are_drawn_and_nothing_else(draw, size, line):
    x1, y1, x2, y2 = size[0] // 4, size[1] // 3, size[0] * 3 // 4, size[1] * 5 // 6
    image, _ = draw(size, detections([x1 + 0.3, y1 - 0.3, x2 + 0.4, y2]))
    expected = np.full_like(image, GRAY)
    for inset, color in ((-1, RIM), (0, class_color(14)), (line, RIM), (line + 1, GRAY)):
        expected[y1 + inset : y2 + 1 - inset, x1 + inset : x2 + 1 - inset] = color
    label = label_patch("person 0.90", text_size(size[1], size[0]), class_color(14))
    high, wide = label.shape[:2]
    assert (12 <= text_size(size[1], size[0]) < high, wide < 0.45 * size[0]) == (True, True)  # legible, and modest
    expected[y1 - high : y1, x1 - 1 : x1 - 1 + wide] = label  # above its corner
    np.testing.assert_array_equal(image, expected)
    assert (draw(size, detections())[0] == GRAY).all()


def test_colors_are_steady_differ_and_carry_legible_text():
    assert [class_color(label) for label in (0, 19, 20)] == [(255, 56, 56), (120, 110, 200), (0, 190, 25)]
    assert min(np.abs(np.subtract(*pair)).sum() for pair in combinations(map(class_color, range(20)), 2)) >= 60
    assert len(set(map(class_color, range(81)))) == 81
    colors = [class_color(label) for label in range(200)]
    c = np.array([colors, list(map(text_color, colors))]) / 255  # contrast as WCAG 2 defines it, from 1 to 21
    luminance = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    assert ((luminance.max(axis=0) + 0.05) / (luminance.min(axis=0) + 0.05)).min() >= 4.5


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (20, 20), (320, 180), (640, 360), (3840, 2160)])
def test_a_label_is_complete_and_inside_the_image_at_every_border(draw, size):
    label = label_patch("person 0.90", text_size(size[1], size[0]), class_color(14))
    thirds = np.array([(x, y, x + 1, y + 1) for x in range(3) for y in range(3)]) / 3
    for box in [*thirds, (0, 0, 1, 1), (-1, -1, 2, 2), (1, 1, 1, 1), (0, 0.99, 1, 1)]:  # fractions of the image
        image, [(x1, y1, x2, y2)] = draw(size, detections(np.multiply(box, size * 2)))
        assert 0 <= x1 <= size[0] - (x2 - x1)
        assert 0 <= y1 <= size[1] - (y2 - y1)
        assert (y2 - y1, x2 - x1) == (min(label.shape[0], size[1]), min(label.shape[1], size[0]))
        np.testing.assert_array_equal(image[y1:y2, x1:x2], label[: y2 - y1, : x2 - x1])


def test_labels_of_neighbors_lie_apart_and_hide_no_small_object(draw):
    found = detections([100, 100, 180, 160], [104, 102, 170, 150], [98, 99, 190, 170])
    image, places = draw((640, 480), found)
    assert all(is_apart(one, other) for one, other in combinations(places, 2))
    for (x1, y1, x2, y2), score in zip(places, found.scores, strict=True):
        label = label_patch(f"person {score:.2f}", text_size(480, 640), class_color(14))
        np.testing.assert_array_equal(image[y1:y2, x1:x2], label)
    image, [place] = draw((640, 480), detections([300, 0, 330, 30]))
    assert is_apart(place, (300, 0, 331, 31))
    crowd = np.sort(np.random.RandomState(0).uniform(0, 640, (500, 2, 2)), axis=1).reshape(500, 4)
    assert len(draw((640, 640), detections(*crowd))[1]) == 500


@pytest.mark.parametrize("best", [0, 5, 11])
def test_the_higher_score_lies_on_top(draw, best):
    labels, scores = np.arange(12), np.full(12, 0.5)
    scores[best] = 0.9
    found = detections(*[[10, 30, 55, 58]] * 12, labels=labels, scores=scores)
    image, [(x1, y1, x2, y2), *_] = draw((100, 60), found)  # no room for twelve labels
    label = label_patch(f"{VOC_CLASSES[best]} 0.90", text_size(60, 100), class_color(best))
    np.testing.assert_array_equal(image[y1:y2, x1:x2], label[: y2 - y1, : x2 - x1])
    found.boxes[:] = 100, 100, 600, 400
    assert draw((640, 480), found)[0][250, 100].tolist() == list(class_color(best))


@pytest.mark.parametrize("font", ["of this OpenCV", "of OpenCV 4"])
def test_names_in_any_script(monkeypatch, font):
    names = ["Größe", "日本犬", "собака", "tab\tand\nnewline", "", "emoji 🐕"]
    if font == "of OpenCV 4":
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    label_patch.cache_clear()
    patches = [label_patch(name, 20, (255, 255, 255)) for name in names]
    assert [(patch < 128).any() for patch in patches] == [True, True, True, True, False, True]
    plain = [label_patch(name, 20, (255, 255, 255)) for name in ("Grosse", "???", "??????", "tab and newline")]
    same = [np.array_equal(*pair) for pair in zip(patches, plain, strict=False)]
    assert same == [*[not hasattr(cv2, "FontFace")] * 3, True]  # else in their own letters
    label_patch.cache_clear()
