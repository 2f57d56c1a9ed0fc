"""Box forms, overlap, encoding and matching, against formulas written for one box at a time."""

import golden_inputs
import numpy as np
import pytest
import slow_formulas as slow
import torch
from torchvision.ops import nms as torchvision_nms

from layers.box_utils import (
    center_size,
    decode,
    encode,
    jaccard,
    log_sum_exp,
    match,
    match_priors,
    nms,
    point_form,
    targets_of_match,
)

VARIANCE = (0.1, 0.2)


def random_boxes(n, generator, largest=0.5):
    corner = torch.rand(n, 2, generator=generator) * 0.8
    return torch.cat([corner, corner + 0.01 + torch.rand(n, 2, generator=generator) * largest], dim=1)


def matched_by_project(overlap_threshold, truths, priors):
    """Object of each prior, -1 where unmatched, of one picture."""
    real = torch.ones(1, len(truths), dtype=torch.bool)
    truth, positive = match_priors(overlap_threshold, truths[None], real, priors)
    return truth[0].masked_fill(~positive[0], -1).tolist()


def matched_by_hand(overlap_threshold, truths, priors):
    overlaps = jaccard(truths, point_form(priors)).numpy()  # checked by itself; float32, so that ties are the same
    return slow.match(overlaps, overlap_threshold)


def owners(matched, n):
    """How many priors each object has."""
    return np.bincount([object_ for object_ in matched if object_ >= 0], minlength=n)


class TestForms:
    def test_corner_form(self, generator):
        boxes = torch.rand(20, 4, generator=generator)
        expected = [slow.corners(box) for box in boxes.tolist()]
        torch.testing.assert_close(point_form(boxes), torch.tensor(expected), atol=1e-6, rtol=0)

    def test_round_trip(self, generator):
        boxes = random_boxes(50, generator)
        torch.testing.assert_close(point_form(center_size(boxes)), boxes, atol=1e-6, rtol=0)
        assert torch.equal(center_size(torch.tensor([[0.0, 0.0, 1.0, 0.5]])), torch.tensor([[0.5, 0.25, 1.0, 0.5]]))

    def test_leading_axes(self, generator):
        boxes = torch.rand(2, 3, 4, generator=generator)
        assert torch.equal(point_form(boxes)[1], point_form(boxes[1]))


class TestJaccard:
    def test_equals_the_formula(self, generator):
        a, b = random_boxes(30, generator), random_boxes(40, generator)
        expected = [[slow.iou(x, y) for y in b.tolist()] for x in a.tolist()]
        torch.testing.assert_close(jaccard(a, b), torch.tensor(expected), atol=1e-6, rtol=0)

    def test_known_values(self):
        box = torch.tensor([[0.0, 0.0, 0.2, 0.2]])
        others = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.1, 0.0, 0.3, 0.2], [0.2, 0.2, 0.4, 0.4], [0.5, 0.5, 0.6, 0.6]])
        torch.testing.assert_close(jaccard(box, others), torch.tensor([[1.0, 1 / 3, 0.0, 0.0]]))


class TestEncoding:
    def test_encode_equals_the_formula(self, generator, priors300):
        boxes, priors = random_boxes(60, generator), priors300[torch.randperm(8732, generator=generator)[:60]]
        pairs = zip(boxes.tolist(), priors.tolist(), strict=True)
        expected = torch.tensor([slow.encode(box, prior) for box, prior in pairs])
        torch.testing.assert_close(encode(boxes, priors, VARIANCE), expected, atol=2e-4, rtol=1e-5)

    def test_decode_equals_the_formula(self, generator, priors300):
        loc, priors = torch.randn(60, 4, generator=generator), priors300[torch.randperm(8732, generator=generator)[:60]]
        pairs = zip(loc.tolist(), priors.tolist(), strict=True)
        expected = torch.tensor([slow.decode(offsets, prior) for offsets, prior in pairs])
        torch.testing.assert_close(decode(loc, priors, VARIANCE), expected, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("variance", [(0.1, 0.2), (1.0, 1.0), (0.3, 0.05)])
    def test_round_trip(self, generator, priors300, variance):
        boxes = random_boxes(8732, generator)
        decoded = decode(encode(boxes, priors300, variance), priors300, variance)
        torch.testing.assert_close(decoded, boxes, atol=1e-5, rtol=0)

    def test_a_prior_is_its_own_zero(self, priors300):
        assert encode(point_form(priors300), priors300, VARIANCE).abs().max() < 1e-4
        decoded = decode(torch.zeros(8732, 4), priors300, VARIANCE)
        torch.testing.assert_close(decoded, point_form(priors300), atol=1e-6, rtol=0)

    def test_a_batch_equals_its_singles(self, generator, priors300):
        loc = torch.randn(3, 8732, 4, generator=generator)
        batch = decode(loc, priors300, VARIANCE)
        assert torch.equal(batch[2], decode(loc[2], priors300, VARIANCE))
        assert torch.equal(encode(batch, priors300, VARIANCE)[1], encode(batch[1], priors300, VARIANCE))


class TestMatching:
    def test_golden(self, golden, priors300):
        _, _, targets = golden_inputs.loss()
        loc_t, conf_t = torch.full((4, 8732, 4), 9.0), torch.full((4, 8732), 99)
        for index, target in enumerate(targets):
            assert np.array_equal(target.numpy(), golden[f"target_{index}"])
            match(0.5, target[:, :4], priors300, VARIANCE, target[:, 4], loc_t, conf_t, index)
        assert np.array_equal(conf_t.numpy(), golden["match_conf"])
        positives = loc_t[conf_t > 0].numpy()
        np.testing.assert_allclose(positives, golden["match_loc_positives"], atol=1e-5, rtol=1e-5)
        assert (loc_t[conf_t == 0] == 0).all()

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
    @pytest.mark.parametrize("objects", [1, 5, 30])
    def test_equals_the_greedy_formula(self, generator, priors300, objects, threshold):
        truths = random_boxes(objects, generator, largest=0.3)
        matched = matched_by_project(threshold, truths, priors300)
        assert matched == matched_by_hand(threshold, truths, priors300)
        assert owners(matched, objects).min() >= 1

    @pytest.mark.parametrize("seed", range(8))
    def test_many_small_objects_among_few_priors(self, seed):
        """Priors are scarce, so objects lose theirs to others again and again, over several rounds."""
        generator = torch.Generator().manual_seed(seed)
        priors = center_size(random_boxes(12, generator))
        truths = random_boxes(20, generator)
        matched = matched_by_project(0.9, truths, priors)
        assert matched == matched_by_hand(0.9, truths, priors)
        assert len(set(matched) - {-1}) >= 8

    @pytest.mark.parametrize("copies", [2, 3, 7])
    def test_objects_that_share_their_best_prior_all_get_one(self, priors300, copies):
        """Equal boxes: every overlap is a tie."""
        truths = torch.tensor([[0.4, 0.4, 0.45, 0.45]]).repeat(copies, 1)
        matched = matched_by_project(0.5, truths, priors300)
        assert matched == matched_by_hand(0.5, truths, priors300)
        assert owners(matched, copies).min() >= 1

    def test_the_better_object_wins_the_shared_prior(self):
        priors = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.8, 0.5, 0.4, 0.4]])
        close, closer = [0.33, 0.3, 0.73, 0.7], [0.3, 0.3, 0.7, 0.69]
        assert matched_by_project(0.99, torch.tensor([close, closer]), priors) == [1, 0]
        assert matched_by_project(0.99, torch.tensor([closer, close]), priors) == [0, 1]

    def test_exact_ties_on_a_grid(self):
        """Objects and priors on one grid: many equal overlaps in both directions, each object still gets its own."""
        cells = [(x / 4 + 0.125, y / 4 + 0.125, 0.25, 0.25) for y in range(4) for x in range(4)]
        priors = torch.tensor(cells)
        truths = point_form(priors)[:9] + torch.tensor([0.125, 0.0, 0.125, 0.0])  # each straddles two priors
        matched = matched_by_project(0.6, truths, priors)
        assert matched == matched_by_hand(0.6, truths, priors)
        assert owners(matched, 9).tolist() == [1] * 9

    def test_an_overlap_of_exactly_the_threshold_counts(self):
        priors = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.25, 0.25]])
        truths = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
        assert matched_by_project(0.5, truths, priors) == [0, 0, -1]

    def test_more_objects_than_priors(self):
        priors = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
        truths = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.25, 0.25, 0.75, 0.75], [0.9, 0.9, 1.0, 1.0]])
        assert matched_by_project(0.5, truths, priors) == [1]

    def test_objects_without_area_or_reversed_get_nothing(self, priors300):
        truths = torch.tensor([[0.4, 0.4, 0.4, 0.6], [0.3, 0.3, 0.3, 0.3], [0.6, 0.6, 0.5, 0.5], [0.1, 0.1, 0.3, 0.3]])
        matched = matched_by_project(0.5, truths, priors300)
        assert owners(matched, 4)[:3].tolist() == [0, 0, 0]
        assert owners(matched, 4)[3] >= 1

    def test_no_objects(self, priors300):
        assert set(matched_by_project(0.5, torch.zeros(0, 4), priors300)) == {-1}
        loc_t, conf_t = torch.full((1, 8732, 4), 9.0), torch.full((1, 8732), 9)
        match(0.5, torch.zeros(0, 4), priors300, VARIANCE, torch.zeros(0), loc_t, conf_t, 0)
        assert not loc_t.any()
        assert not conf_t.any()

    def test_a_padded_batch_equals_its_singles(self, generator, priors300):
        counts = (3, 0, 11, 1)
        pictures = [random_boxes(n, generator) for n in counts]
        truths = torch.nn.utils.rnn.pad_sequence(pictures, batch_first=True, padding_value=0.5)
        real = torch.arange(11) < torch.tensor(counts)[:, None]
        labels = torch.arange(11).expand(4, -1)
        loc_t, conf_t = targets_of_match(
            truths, labels, *match_priors(0.5, truths, real, priors300), priors300, VARIANCE
        )
        for index, truths_of_one in enumerate(pictures):
            loc_of_one, conf_of_one = torch.zeros(1, 8732, 4), torch.zeros(1, 8732, dtype=torch.int64)
            args = (truths_of_one, priors300, VARIANCE, torch.arange(len(truths_of_one)), loc_of_one, conf_of_one, 0)
            match(0.5, *args)
            assert torch.equal(loc_t[index], loc_of_one[0])
            assert torch.equal(conf_t[index], conf_of_one[0])

    def test_targets_are_the_encoded_boxes_and_the_classes_from_1(self, generator, priors300):
        truths, labels = random_boxes(6, generator), torch.tensor([0, 19, 3, 3, 7, 1])
        loc_t, conf_t = torch.zeros(1, 8732, 4), torch.zeros(1, 8732)
        match(0.5, truths, priors300, VARIANCE, labels, loc_t, conf_t, 0)
        matched = matched_by_hand(0.5, truths, priors300)
        assert conf_t[0].tolist() == [0 if object_ < 0 else int(labels[object_]) + 1 for object_ in matched]
        for prior, object_ in enumerate(matched):
            if object_ >= 0:
                expected = slow.encode(truths[object_].tolist(), priors300[prior].tolist())
                assert loc_t[0, prior].tolist() == pytest.approx(expected, abs=2e-4)


class TestNms:
    def test_equals_the_formula_and_torchvision(self, generator):
        boxes, scores = random_boxes(150, generator), torch.rand(150, generator=generator)
        keep, count = nms(boxes, scores, 0.45, 200)
        assert keep[:count].tolist() == slow.nms(boxes.tolist(), scores.tolist(), 0.45)
        assert torch.equal(keep[:count], torchvision_nms(boxes, scores, 0.45))
        assert keep.dtype == torch.int64
        assert not keep[count:].any()
        assert 0 < count < len(keep) == 150

    def test_only_the_best_enter(self):
        boxes = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3], [0.4, 0.4, 0.5, 0.5]])
        keep, count = nms(boxes, torch.tensor([0.1, 0.9, 0.5]), 0.45, top_k=2)
        assert keep[:count].tolist() == [1, 2]

    def test_nothing(self):
        keep, count = nms(torch.zeros(0, 4), torch.zeros(0))
        assert (len(keep), count) == (0, 0)


def test_log_sum_exp_neither_overflows_nor_mixes_rows():
    """The lineage subtracted the batch's maximum: a row far below it came out as -inf."""
    x = torch.tensor([[1000.0, 1000.0], [-1000.0, -1000.0], [0.0, 0.0]])
    torch.testing.assert_close(log_sum_exp(x), x[:, :1] + np.log(2), atol=1e-4, rtol=0)
