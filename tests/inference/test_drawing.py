"""Boxes and labels in pictures."""

from itertools import combinations

import numpy as np
import pytest

from data import VOC_CLASSES
from inference import Detections, drawing
from inference.drawing import class_colour, draw_detections, label_patch, place_label, text_colour, text_size


def detections(*boxes, label=14, scores=None, name=None):
    labels = np.full(len(boxes), label)
    scores = np.linspace(0.9, 0.8, len(boxes), dtype=np.float32) if scores is None else np.array(scores, np.float32)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), scores, labels, [name or VOC_CLASSES[label]] * len(boxes)
    )


def grey(width, height):
    return np.full((height, width, 3), 128, np.uint8)


def contrast(one, other):
    """Contrast ratio of two colours as WCAG 2 defines it, 1 to 21."""

    def luminance(colour):
        c = np.array(colour) / 255
        return np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_nothing_found_changes_nothing():
    frame = grey(320, 180)
    draw_detections(frame, detections())
    assert (frame == 128).all()


@pytest.mark.parametrize(("width", "height"), [(320, 180), (1920, 1080), (3840, 2160)])
def test_a_box_is_drawn_at_its_edges_and_leaves_its_middle_alone(width, height):
    frame = grey(width, height)
    box = [0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]
    draw_detections(frame, detections(box))
    changed = (frame != 128).any(axis=-1)
    rows, columns = np.flatnonzero(changed[:, width // 2]), np.flatnonzero(changed[height // 2])
    reach = max(width // 100, 4)
    assert np.abs(columns - box[0]).min() <= 1
    assert np.abs(columns - box[2]).min() <= 1
    assert np.abs(rows - box[1]).min() <= 1
    assert np.abs(rows - box[3]).min() <= 1
    near = (np.abs(columns[:, None] - [box[0], box[2]]) < reach).any(axis=1)
    assert near.all()
    assert (frame[height // 2 :, columns].reshape(-1, 3) == class_colour(14)).all(axis=1).any()


@pytest.mark.parametrize("width", [320, 640, 1920, 3840])
def test_labels_are_legible_and_modest(width):
    size = text_size(width * 9 // 16, width)
    assert 12 <= size <= width / 25
    patch = label_patch("diningtable 0.87", size, class_colour(10))
    assert patch.shape[0] < 1.6 * size
    assert patch.shape[1] < 0.45 * width


@pytest.mark.parametrize("label", [*range(20), 33, 57, 79, 500])
def test_text_stands_out_and_colours_are_steady(label):
    assert contrast(class_colour(label), text_colour(class_colour(label))) >= 4.5
    assert class_colour(label) == class_colour(label)
    patch = label_patch(f"class {label} 0.50", 20, class_colour(label))
    assert (patch == class_colour(label)).all(axis=-1).any()
    assert contrast(patch.reshape(-1, 3)[(patch.reshape(-1, 3).sum(axis=1)).argmin()], class_colour(label)) > 1 or (
        text_colour(class_colour(label)) == (255, 255, 255)
    )


def test_the_first_twenty_colours_differ():
    distances = [np.abs(np.subtract(one, other)).sum() for one, other in combinations(map(class_colour, range(20)), 2)]
    assert min(distances) >= 60


@pytest.mark.parametrize(
    "box",
    [[0, 0, 50, 40], [270, 0, 320, 40], [0, 150, 40, 180], [290, 150, 320, 180], [-9, -9, 999, 999], [5, 5, 5, 5]],
)
def test_the_whole_label_is_inside_the_picture(box):
    frame = grey(320, 180)
    draw_detections(frame, detections(box))
    label = label_patch("person 0.90", text_size(180, 320), class_colour(14))
    high, wide = label.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(frame, label.shape)[:, :, 0]
    candidates = np.argwhere(
        (windows[:, :, 0, 0] == label[0, 0]).all(axis=-1) & (windows[:, :, -1, -1] == label[-1, -1]).all(-1)
    )
    assert any((frame[y : y + high, x : x + wide] == label).all() for y, x in candidates)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 200), (200, 3), (20, 20)])
def test_pictures_smaller_than_a_label(width, height):
    frame = grey(width, height)
    draw_detections(frame, detections([0, 0, width, height]))
    assert frame.shape == (height, width, 3)
    assert (frame != 128).any()


def test_labels_of_neighbours_lie_apart():
    places = []
    for corners in ([100, 100, 180, 160], [104, 102, 170, 150], [98, 99, 190, 170]):
        places.append(place_label((480, 640), (20, 80), corners, 2, places))
    for one, other in combinations(places, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_the_better_box_lies_on_top():
    frame = grey(640, 480)
    box = [100, 100, 300, 300]
    both = Detections(
        np.array([box, box], np.float32), np.array([0.9, 0.5], np.float32), np.array([0, 1]), ["aeroplane", "bicycle"]
    )
    draw_detections(frame, both)
    line = frame[200, 95:110].tolist()
    assert list(class_colour(0)) in line
    assert list(class_colour(1)) not in line


@pytest.mark.parametrize("name", ["Größe", "日本犬", "собака", "tab\tand\nnewline", "", "emoji 🐕"])
@pytest.mark.parametrize("old", [False, True])
def test_names_beyond_ascii(monkeypatch, name, old):
    if old:  # OpenCV 4 has no FontFace
        monkeypatch.delattr(drawing.cv2, "FontFace", raising=False)
    label_patch.cache_clear()
    frame = grey(640, 360)
    draw_detections(frame, detections([100, 100, 200, 200], name=name))
    assert (frame != 128).any()
    label_patch.cache_clear()


def test_stroke_fonts_keep_the_letter_below_an_accent():
    assert drawing.plain("Größe, façade, naïve") == "Grosse, facade, naive"
    assert drawing.plain("日本") == "??"


def test_a_view_is_drawn_into():
    frame = grey(320, 180)
    draw_detections(frame[:, ::-1], detections([10, 50, 90, 150]))
    straight = grey(320, 180)
    draw_detections(straight, detections([10, 50, 90, 150]))
    np.testing.assert_array_equal(frame[:, ::-1], straight)


def test_very_many_boxes():
    random = np.random.RandomState(0)
    corners = random.uniform(0, 640, (500, 4))
    frame = grey(640, 640)
    draw_detections(frame, detections(*np.sort(corners.reshape(500, 2, 2), axis=1).reshape(500, 4)))
    assert (frame != 128).any()
