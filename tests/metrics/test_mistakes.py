"""Which mistakes are shown, what is said about them, and the page that shows them."""

import base64
import re

import cv2
import numpy as np
import pytest
from metrics.mistakes_page import DETECTION, TRUTH, draw_mistake, write_mistakes_page

from metrics.mistakes import Mistake, find_mistakes
from metrics.voc import DetectionArrays, GroundTruthArrays, evaluate_detections

NAMES = ("cat", "dog", "<i>fish</i>")
LEFT, MIDDLE, RIGHT = (11, 11, 40, 40), (51, 11, 80, 40), (91, 11, 120, 40)


def mistakes_of(objects, detections, **settings):
    """objects (picture, label, difficult, box), detections (picture, label, score, box); a ClassMistakes by class."""
    truth = GroundTruthArrays(*(list(column) for column in zip(*objects, strict=True)))
    found = DetectionArrays(*(list(column) for column in zip(*detections, strict=True)))
    result = evaluate_detections(found, truth, NAMES, "devkit")
    return result, find_mistakes(result, found, truth, **settings)


def test_false_positives_come_by_falling_score_with_their_reason():
    _, (cat, _, _) = mistakes_of(
        [(0, 0, False, LEFT), (0, 1, False, MIDDLE)],
        [
            (0, 0, 0.95, LEFT),
            (0, 0, 0.5, (11, 11, 40, 39)),
            (0, 0, 0.9, MIDDLE),
            (0, 0, 0.4, (31, 11, 60, 40)),
            (0, 0, 0.8, RIGHT),
        ],
    )
    assert [(mistake.score, mistake.reason) for mistake in cat.false_positives] == [
        (0.9, "on a dog"),
        (0.8, "no cat there"),
        (0.5, "second detection of one cat"),
        (0.4, "badly placed: IoU 0.20"),
    ]
    assert cat.false_positive_count == 2  # at 0.6
    assert cat.misses == ()
    assert cat.false_positives[0].truth.tolist() == [list(LEFT)]


def test_misses_put_the_never_found_first_and_large_ones_before_small():
    small, large = (1, 1, 5, 5), (1, 51, 100, 100)
    _, (cat, dog, _) = mistakes_of(
        [
            (0, 0, False, LEFT),
            (1, 0, False, small),
            (1, 0, False, large),
            (1, 0, True, RIGHT),
            (2, 0, False, MIDDLE),
            (3, 0, False, MIDDLE),
            (4, 0, False, MIDDLE),
        ],
        [
            (0, 0, 0.3, LEFT),
            (1, 1, 0.9, large),
            (2, 0, 0.6, MIDDLE),
            (3, 0, 0.1, MIDDLE),
            (4, 0, 0.7, (51, 11, 80, 22)),
        ],
    )
    assert [(mistake.picture, mistake.reason) for mistake in cat.misses] == [
        (1, "never found; taken for a dog (0.90)"),
        (4, "never found; nearest cat (0.70) has IoU 0.40"),
        (1, "never found"),
        (3, "found only at 0.10"),
        (0, "found only at 0.30"),
    ]
    assert cat.miss_count == 5
    assert cat.misses[0].detected.tolist() == [list(large)]
    assert dog.false_positives[0].reason == "on a cat"


def test_at_most_so_many_are_shown_but_all_are_counted():
    objects = [(picture, 0, False, LEFT) for picture in range(9)]
    detections = [(picture, 0, 0.7 + picture / 100, RIGHT) for picture in range(9)]
    _, (cat, _, _) = mistakes_of(objects, detections, per_class=2)
    assert [mistake.picture for mistake in cat.false_positives] == [8, 7]
    assert (len(cat.misses), cat.false_positive_count, cat.miss_count) == (2, 9, 9)


def a_mistake(box, missed=False, truth=()):
    truth = np.array(truth, dtype=float).reshape(-1, 4)
    return Mistake(missed, 0, np.array(box, dtype=float), 0.5, "reason", truth, np.empty((0, 4)))


@pytest.mark.parametrize(
    "box",
    [(1, 1, 200, 100), (-50, -50, 400, 300), (1, 1, 1, 1), (200, 100, 200, 100), (150, 1, 260, 9), (90, 40, 99, 99)],
)
def test_crops_stay_inside_the_picture(box):
    pixels = np.full((100, 200, 3), 128, dtype=np.uint8)
    crop = draw_mistake(pixels, a_mistake(box))
    assert crop.dtype == np.uint8
    assert max(crop.shape[:2]) == 240
    assert min(crop.shape[:2]) >= 1
    assert (pixels == 128).all()  # the picture itself isn't drawn on


def test_boxes_are_drawn_where_they_are_in_their_colour():
    pixels = np.full((100, 100, 3), 128, dtype=np.uint8)
    red = draw_mistake(pixels, a_mistake((31, 31, 70, 70)))  # shown: half its size around it, 79 pixels on 240
    assert (red[60, 61:179] == DETECTION).all()
    assert (red[70:170, 70:170] == 128).all()
    green = draw_mistake(pixels, a_mistake((31, 31, 70, 70), missed=True))
    assert (green[60, 61:177] == TRUTH).all()
    both = draw_mistake(pixels, a_mistake((31, 31, 70, 70), truth=[(41, 41, 60, 60)]))
    assert (both[91, 95:140] == TRUTH).all()
    assert (both[60, 61:177] == DETECTION).all()


@pytest.fixture
def page(tmp_path):
    result, mistakes = mistakes_of(
        [(0, 2, False, LEFT), (1, 0, False, LEFT)], [(0, 0, 0.9, LEFT), (0, 0, 0.8, RIGHT), (1, 1, 0.7, LEFT)]
    )
    reads = []

    def read_image(index):
        reads.append(index)
        return np.full((60, 130, 3), (250, 10, 10), dtype=np.uint8)

    path = tmp_path / "mistakes.html"
    write_mistakes_page(
        path,
        title="a & b <script>alert(1)</script>",
        summary=["mAP <0.5>"],
        result=result,
        mistakes=mistakes,
        threshold=0.6,
        picture_ids=["one", '"><img src=x onerror=alert(1)>'],
        read_image=read_image,
    )
    return path.read_text(encoding="utf-8"), reads


def test_page_escapes_what_comes_from_the_data(page):
    html, _ = page
    assert "<script" not in html
    assert "<i>" not in html
    assert "onerror=alert(1)>" not in html
    assert "&lt;i&gt;fish&lt;/i&gt;" in html
    assert "a &amp; b &lt;script&gt;" in html
    assert "&quot;&gt;&lt;img src=x" in html


def test_page_holds_all_it_shows(page):
    html, _ = page
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 5  # two cats and one dog too many; the fish and the second cat missed
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "http" not in html
    for source in sources:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        assert max(picture.shape[:2]) == 240
        assert np.abs(picture[picture.shape[0] - 2, 2].astype(int) - (10, 10, 250)).max() < 12  # BGR of the red picture


def test_page_says_what_each_class_did(page):
    html, reads = page
    assert reads == [0, 1]  # each picture once, though three mistakes are in the first
    assert html.count("<section") == 3
    assert "on an &lt;i&gt;" not in html
    assert "on a &lt;i&gt;fish&lt;/i&gt;" in html
    assert "2 false positives, 1 miss<" in html
    assert "never found; taken for a dog (0.70)" in html


def test_page_without_mistakes_says_so(tmp_path):
    result, mistakes = mistakes_of([(0, 0, False, LEFT)], [(0, 0, 0.9, LEFT)])
    path = tmp_path / "mistakes.html"
    write_mistakes_page(
        path,
        title="t",
        summary=[],
        result=result,
        mistakes=mistakes,
        threshold=0.6,
        picture_ids=["a"],
        read_image=None,
    )
    assert "No mistakes at all." in path.read_text()
