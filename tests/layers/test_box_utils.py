"""Box forms, overlap, encoding and matching, against formulas written for one box at a time."""

import golden_inputs
import numpy as np
import pytest
import slow_formulas as slow
import torch

from layers.box_utils import (
    center_size,
    decode,
    encode,
    intersect,
    jaccard,
    log_sum_exp,
    match,
    match_priors,
    nms,
    point_form,
)


def random_boxes(n, generator, largest=0.5):
    corner = torch.rand(n, 2, generator=generator) * 0.8
    return torch.cat([corner, corner + 0.01 + torch.rand(n, 2, generator=generator) * largest], dim=1)


def test_forms(generator):
    boxes = torch.rand(2, 20, 4, generator=generator)
    corners = torch.tensor([[slow.corners(box) for box in image] for image in boxes.tolist()])
    torch.testing.assert_close(point_form(boxes), corners, atol=1e-6, rtol=0)
    torch.testing.assert_close(center_size(corners), boxes, atol=1e-6, rtol=0)


def test_overlap(generator):
    a, b = random_boxes(30, generator), random_boxes(40, generator)
    expected = torch.tensor([[slow.iou(x, y) for y in b.tolist()] for x in a.tolist()])
    torch.testing.assert_close(jaccard(a, b), expected, atol=1e-6, rtol=0)
    others = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.1, 0.0, 0.3, 0.2], [0.2, 0.2, 0.4, 0.4], [0.5, 0.5, 0.6, 0.6]])
    torch.testing.assert_close(intersect(others[:1], others), torch.tensor([[0.04, 0.02, 0.0, 0.0]]))


def test_encode_and_decode_equal_the_formulas(generator, priors300):
    boxes, loc = random_boxes(60, generator), torch.randn(60, 4, generator=generator)
    priors = priors300[torch.randperm(8732, generator=generator)[:60]]
    encoded = [slow.encode(*pair) for pair in zip(boxes.tolist(), priors.tolist(), strict=True)]
    torch.testing.assert_close(encode(boxes, priors, slow.VARIANCE), torch.tensor(encoded), atol=2e-4, rtol=1e-5)
    decoded = [slow.decode(*pair) for pair in zip(loc.tolist(), priors.tolist(), strict=True)]
    torch.testing.assert_close(decode(loc, priors, slow.VARIANCE), torch.tensor(decoded), atol=1e-6, rtol=1e-6)
    round_trip = decode(encode(boxes.expand(2, -1, -1), priors, slow.VARIANCE), priors, slow.VARIANCE)
    torch.testing.assert_close(round_trip, boxes.expand(2, -1, -1), atol=1e-5, rtol=0)


class TestMatching:
    def test_golden(self, golden, priors300):
        """And a fifth image, without objects: each call writes one row of the targets, all of it."""
        _, _, targets = golden_inputs.loss()
        loc_t, conf_t = torch.full((5, 8732, 4), 9.0), torch.full((5, 8732), 99)
        for index, target in enumerate([*targets, torch.zeros(0, 5)]):
            match(0.5, target[:, :4], priors300, slow.VARIANCE, target[:, 4], loc_t, conf_t, index)
            assert index == 4 or np.array_equal(target.numpy(), golden[f"target_{index}"])
            assert (loc_t[index + 1 :] == 9).all()
        assert np.array_equal(conf_t[:4].numpy(), golden["match_conf"])
        assert not conf_t[4].any()
        positives = loc_t[conf_t > 0].numpy()
        np.testing.assert_allclose(positives, golden["match_loc_positives"], atol=1e-5, rtol=1e-5)
        assert (loc_t[conf_t == 0] == 0).all()

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_the_greedy_formula(self, priors300, seed, threshold):
        """With equal objects, which tie for every prior; then with fewer priors than objects, over several rounds."""
        generator = torch.Generator().manual_seed(seed)
        truths = random_boxes(20, generator, largest=0.3)
        truths[:4] = truths[10]
        for priors in (priors300, center_size(random_boxes(12, generator))):
            matched = match_priors(threshold, truths, priors).tolist()
            overlaps = jaccard(truths, point_form(priors)).numpy()  # tested on its own; float32, with the same ties
            assert matched == slow.match(overlaps, threshold)
            assert len(set(matched) - {-1}) >= (20 if priors is priors300 else 8)

    def test_an_overlap_of_exactly_the_threshold_counts(self):
        priors = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.25, 0.25]])
        assert match_priors(0.5, torch.tensor([[0.25, 0.25, 0.75, 0.75]]), priors).tolist() == [0, 0, -1]

    def test_objects_without_area_or_reversed_get_nothing(self, priors300):
        """The last prior has no area either: its overlap with the second object is NaN."""
        truths = torch.tensor([[0.4, 0.4, 0.4, 0.6], [0.3, 0.3, 0.3, 0.3], [0.6, 0.6, 0.5, 0.5], [0.1, 0.1, 0.3, 0.3]])
        matched = match_priors(0.5, truths, torch.cat([priors300, torch.tensor([[0.3, 0.3, 0.0, 0.0]])]))
        assert set(matched.tolist()) == {-1, 3}


def test_nms(generator):
    boxes, scores = random_boxes(150, generator), torch.rand(150, generator=generator)
    keep, count = nms(boxes, scores, 0.45, 200)
    assert keep[:count].tolist() == slow.nms(boxes.tolist(), scores.tolist(), 0.45)
    assert 0 < count < len(keep) == 150
    assert not keep[count:].any()
    keep, count = nms(boxes, scores, 1.0, top_k=2)
    assert keep[:count].tolist() == scores.topk(2).indices.tolist()
    assert nms(boxes[:0], scores[:0])[1] == 0


def test_log_sum_exp_neither_overflows_nor_mixes_rows():
    """The lineage subtracts the maximum of the batch: a row far below it comes out as -inf."""
    x = torch.tensor([[1000.0, 1000.0], [-1000.0, -1000.0], [0.0, 0.0]])
    torch.testing.assert_close(log_sum_exp(x), x[:, :1] + np.log(2), atol=1e-4, rtol=0)
