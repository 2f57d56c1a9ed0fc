"""Detect: the golden detections, a slow loop over pictures and classes, and torchvision's NMS."""

import golden_inputs
import numpy as np
import pytest
import slow_formulas as slow
import torch
from torchvision.ops import batched_nms
from torchvision.ops import nms as torchvision_nms

from layers.functions import Detect, detection
from layers.functions.detection import _suppress


def boxes_in_rows(rows, k, generator, spread=0.5):
    """Corners [rows, k, 4]: a crowd of overlapping boxes."""
    corner = torch.rand(rows, k, 2, generator=generator) * spread
    return torch.cat([corner, corner + 0.02 + torch.rand(rows, k, 2, generator=generator) * 0.3], dim=-1)


def detected_by_hand(loc, scores, priors, *, enter=200, top_k=200, conf_thresh=0.01, nms_thresh=0.45, keep_top_k=None):
    """One picture: {class: rows (score, corners), best first}, for every class but the background."""
    loc, scores_of_class, priors = loc.tolist(), scores.T.tolist(), priors.tolist()
    found = {}
    for class_, score in enumerate(scores_of_class):
        if class_ == 0:
            continue
        above = [prior for prior in range(len(priors)) if score[prior] > conf_thresh]
        above = sorted(above, key=lambda prior: -score[prior])[:enter]
        boxes = [slow.decode(loc[prior], priors[prior]) for prior in above]
        kept = slow.nms(boxes, [score[prior] for prior in above], nms_thresh)
        found[class_] = [(score[above[i]], *boxes[i]) for i in kept]
    if keep_top_k is not None:
        limit = sorted((row[0] for rows in found.values() for row in rows), reverse=True)[:keep_top_k][-1]
        found = {class_: [row for row in rows if row[0] >= limit] for class_, rows in found.items()}
    return {class_: rows[:top_k] for class_, rows in found.items()}


def assert_rows(out, found):
    """out [C, top_k, 5] holds these rows, and zeros otherwise."""
    expected = np.zeros(out.shape)
    for class_, rows in found.items():
        if rows:
            expected[class_, : len(rows)] = rows
    np.testing.assert_array_equal(out[..., 0].numpy() > 0, expected[..., 0] > 0)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5, rtol=0)


def small_input(seed, pictures=2, priors=300, classes=5, hot=120):
    """(loc, scores, priors): fewer priors, of which many are sure of something."""
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(pictures, priors, 4, generator=generator) * 0.5
    conf = torch.randn(pictures, priors, classes, generator=generator)
    conf[..., 0] += 5
    for picture in range(pictures):
        chosen = torch.randperm(priors, generator=generator)[:hot]
        conf[picture, chosen, torch.randint(1, classes, (hot,), generator=generator)] += 7
    centre_size = torch.rand(priors, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.2, 0.2])
    return loc, conf.softmax(-1), centre_size + torch.tensor([0.2, 0.2, 0.1, 0.1])


class TestGolden:
    def test_detections(self, golden, priors300):
        out = Detect(21, 0, 200, 0.01, 0.45)(*golden_inputs.detect(), priors300)
        assert out.dtype == torch.float32
        assert np.array_equal(out[..., 0].numpy() > 0, golden["detect_out"][..., 0] > 0)  # the same boxes are kept
        np.testing.assert_allclose(out.numpy(), golden["detect_out"], atol=1e-5, rtol=0)

    def test_a_batch_equals_its_singles(self, priors300):
        loc, scores = golden_inputs.detect(seed=1)
        detect = Detect(21, 0, 200, 0.01, 0.45)
        batch = detect(loc, scores, priors300)
        for index in range(2):
            assert torch.equal(
                batch[index : index + 1], detect(loc[index : index + 1], scores[index : index + 1], priors300)
            )


class TestAgainstTheLoop:
    def test_at_full_size(self, priors300):
        loc, scores = golden_inputs.detect(seed=2)
        out = Detect(21)(loc, scores, priors300)
        assert_rows(out[1], detected_by_hand(loc[1], scores[1], priors300))

    @pytest.mark.parametrize("seed", range(3))
    def test_default(self, seed):
        loc, scores, priors = small_input(seed)
        out = Detect(5, 0, 200, 0.01, 0.45)(loc, scores, priors)
        for picture in range(2):
            assert_rows(out[picture], detected_by_hand(loc[picture], scores[picture], priors))

    @pytest.mark.parametrize(("conf_thresh", "nms_thresh"), [(0.5, 0.45), (0.01, 0.1), (0.0, 0.9), (0.3, 1.0)])
    def test_thresholds(self, conf_thresh, nms_thresh):
        loc, scores, priors = small_input(7)
        out = Detect(5, 0, 200, conf_thresh, nms_thresh)(loc, scores, priors)
        found = detected_by_hand(loc[0], scores[0], priors, conf_thresh=conf_thresh, nms_thresh=nms_thresh)
        assert sum(map(len, found.values())) > 20
        assert_rows(out[0], found)

    def test_fewer_enter_than_there_are_candidates(self):
        loc, scores, priors = small_input(3)
        out = Detect(5, 0, 10, 0.01, 0.45)(loc, scores, priors)
        found = detected_by_hand(loc[0], scores[0], priors, enter=10, top_k=10)
        assert max(map(len, found.values())) > 3
        assert_rows(out[0], found)

    def test_more_enter_than_come_out(self):
        loc, scores, priors = small_input(4)
        out = Detect(5, 0, 5, 0.01, 0.9, nms_top_k=40)(loc, scores, priors)
        found = detected_by_hand(loc[0], scores[0], priors, enter=40, top_k=5, nms_thresh=0.9)
        assert {len(rows) for rows in found.values()} == {5}
        assert_rows(out[0], found)

    @pytest.mark.parametrize("keep_top_k", [1, 7, 30, 10_000])
    def test_the_rule_of_the_papers_code(self, keep_top_k):
        """400 a class before NMS, then the best over all classes."""
        loc, scores, priors = small_input(5)
        out = Detect(5, 0, 200, 0.01, 0.45, nms_top_k=400, keep_top_k=keep_top_k)(loc, scores, priors)
        for picture in range(2):
            found = detected_by_hand(loc[picture], scores[picture], priors, enter=400, keep_top_k=keep_top_k)
            assert_rows(out[picture], found)
        assert (out[..., 0] > 0).sum(dim=(1, 2)).max() <= keep_top_k

    def test_the_rule_of_the_papers_code_at_full_size(self, priors300):
        loc, scores = golden_inputs.detect(seed=3)
        scores = scores.clone()
        hot = torch.arange(0, 8732, 20)  # so that more than 400 of class 5, and more than 200 of a picture, remain
        scores[:, hot, 5] = torch.linspace(0.2, 0.9, len(hot))
        out = Detect(21, 0, 200, 0.01, 0.45, nms_top_k=400, keep_top_k=200)(loc, scores, priors300)
        found = detected_by_hand(loc[0], scores[0], priors300, enter=400, keep_top_k=200)
        assert sum(map(len, found.values())) == 200
        assert_rows(out[0], found)


class TestFewCandidates:
    """They are sorted rather than searched for: another way to the same rows."""

    @pytest.mark.parametrize("options", [{}, {"top_k": 7}, {"nms_top_k": 4, "keep_top_k": 9}, {"bkg_label": 2}])
    @pytest.mark.parametrize("conf_thresh", [0.01, 0.3, 0.9])
    def test_both_ways_agree(self, monkeypatch, conf_thresh, options):
        detect = Detect(5, conf_thresh=conf_thresh, **options)
        found = []
        for share in (-1, 1):  # never, always
            monkeypatch.setattr(detection, "FEW", share)
            found.append(detect(*small_input(3, pictures=3)))
        assert torch.equal(*found)
        assert found[0].any()

    def test_at_full_size(self, priors300, monkeypatch):
        loc, scores = golden_inputs.detect(seed=4)
        expected = Detect(21, conf_thresh=0.9)(loc, scores, priors300)
        monkeypatch.setattr(detection, "FEW", 0)
        assert torch.equal(Detect(21, conf_thresh=0.9)(loc, scores, priors300), expected)
        assert 0 < ((scores > 0.9).sum() - (scores[..., 0] > 0.9).sum()) < 0.01 * scores.numel()


class TestForm:
    def test_background_is_empty_whatever_its_index(self):
        loc, scores, priors = small_input(0)
        for background in (0, 3):
            out = Detect(5, background, 200, 0.01, 0.45)(loc, scores, priors)
            assert not out[:, background].any()
            assert (out[:, [c for c in range(5) if c != background], 0, 0] > 0).all()

    def test_rows_are_sorted_and_padded_with_zeros(self):
        loc, scores, priors = small_input(1)
        out = Detect(5)(loc, scores, priors)
        assert out.shape == (2, 5, 200, 5)
        assert (out[..., :-1, 0] >= out[..., 1:, 0]).all()
        assert not out[out[..., 0] == 0].any()
        assert ((out[..., 0] == 0) | (out[..., 0] > 0.01)).all()

    def test_scores_must_be_greater_than_the_threshold(self):
        scores = torch.tensor([[[0.0, 0.25], [0.0, 0.5]]])
        out = Detect(2, 0, 10, 0.25, 0.45)(
            torch.zeros(1, 2, 4), scores, torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1]])
        )
        assert out[0, 1, :3, 0].tolist() == [0.5, 0, 0]

    def test_overlap_of_exactly_the_threshold_stays(self):
        """Two boxes that share half of their union."""
        priors = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 0.5]])
        scores = torch.tensor([[[0.1, 0.9], [0.2, 0.8]]])
        for thresh, kept in ((0.5, 2), (0.49, 1)):
            out = Detect(2, 0, 10, 0.01, thresh)(torch.zeros(1, 2, 4), scores, priors)
            assert int((out[..., 0] > 0).sum()) == kept

    def test_nothing_found(self, priors300):
        scores = torch.zeros(2, 8732, 21)
        scores[..., 0] = 1
        assert not Detect(21)(torch.zeros(2, 8732, 4), scores, priors300).any()

    def test_nan_scores_are_nothing(self):
        loc, scores, priors = small_input(2)
        scores[0] = float("nan")
        out = Detect(5)(loc, scores, priors)
        assert not out[0].any()
        assert out[1].any()

    def test_the_lineages_flat_scores(self):
        loc, scores, priors = small_input(2)
        assert torch.equal(Detect(5)(loc, scores.view(-1, 5), priors), Detect(5)(loc, scores, priors))

    def test_bfloat16_input_is_worked_on_in_float32(self):
        loc, scores, priors = small_input(6)
        loc, scores = loc.bfloat16(), scores.bfloat16()
        out = Detect(5)(loc, scores, priors)
        assert out.dtype == torch.float32
        assert torch.equal(out, Detect(5)(loc.float(), scores.float(), priors))

    def test_input_with_gradients(self):
        loc, scores, priors = small_input(6)
        out = Detect(5)(loc.clone().requires_grad_(), scores.clone().requires_grad_(), priors)
        assert not out.requires_grad
        assert torch.equal(out, Detect(5)(loc, scores, priors))

    def test_input_is_left_alone(self):
        loc, scores, priors = small_input(6)
        before = loc.clone(), scores.clone(), priors.clone()
        Detect(5)(loc, scores, priors)
        assert all(torch.equal(a, b) for a, b in zip(before, (loc, scores, priors), strict=True))

    def test_an_empty_batch(self):
        _, _, priors = small_input(0)
        assert Detect(5)(torch.zeros(0, 300, 4), torch.zeros(0, 300, 5), priors).shape == (0, 5, 200, 5)

    @pytest.mark.parametrize(
        "arguments", [{"nms_thresh": 0}, {"nms_thresh": -1}, {"nms_thresh": 1.1}, {"top_k": 0}, {"bkg_label": 21}]
    )
    def test_wrong_settings_are_refused(self, arguments):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            Detect(21, **arguments)


class TestSuppress:
    @pytest.mark.parametrize("nms_thresh", [0.1, 0.45, 0.8])
    @pytest.mark.parametrize("spread", [0.05, 0.5])
    def test_equals_torchvision(self, generator, nms_thresh, spread):
        boxes = boxes_in_rows(30, 200, generator, spread)
        scores = torch.rand(30, 200, generator=generator).sort(dim=1, descending=True).values
        kept = _suppress(boxes, scores, nms_thresh)
        for row in range(30):
            expected = torch.zeros(200, dtype=torch.bool)
            expected[torchvision_nms(boxes[row], scores[row], nms_thresh)] = True
            assert torch.equal(kept[row], expected)

    def test_rows_are_independent(self, generator):
        boxes = boxes_in_rows(6, 50, generator)
        scores = torch.rand(6, 50, generator=generator).sort(dim=1, descending=True).values
        rows = torch.arange(6).repeat_interleave(50)
        expected = torch.zeros(300, dtype=torch.bool)
        expected[batched_nms(boxes.flatten(0, 1), scores.flatten(), rows, 0.45)] = True
        assert torch.equal(_suppress(boxes, scores, 0.45).flatten(), expected)

    def test_the_longest_chain(self):
        """Each box overlaps just its neighbours: every second one stays, and it takes as many rounds as boxes."""
        start = torch.arange(60) * 0.5
        boxes = torch.stack([start, torch.zeros(60), start + 1, torch.ones(60)], dim=1)[None]
        kept = _suppress(boxes, torch.linspace(1, 0.1, 60)[None], 0.3)
        assert kept[0].tolist() == [True, False] * 30

    def test_empty_places_neither_stay_nor_suppress(self):
        boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])
        assert _suppress(boxes, torch.tensor([[0.9, 0.0, 0.0]]), 0.5).tolist() == [[True, False, False]]
        assert _suppress(boxes, torch.zeros(1, 3), 0.5).tolist() == [[False, False, False]]

    def test_boxes_without_area_stay_as_in_torchvision(self):
        boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.5], [0.1, 0.1, 0.1, 0.5], [0.3, 0.3, 0.3, 0.3]]])
        scores = torch.tensor([[0.9, 0.8, 0.7]])
        assert len(torchvision_nms(boxes[0], scores[0], 0.45)) == 3
        assert _suppress(boxes, scores, 0.45).all()


class TestWithoutALook:
    """What a GPU does: everything of known shape, and a flag that says whether it may be believed."""

    @pytest.mark.parametrize("options", [{}, {"nms_top_k": 400, "keep_top_k": 200}, {"top_k": 20, "nms_thresh": 0.9}])
    def test_equals_forward(self, priors300, options):
        loc, scores = golden_inputs.detect(seed=4)
        detect = Detect(21, **options)
        out, settled = detect.without_a_look(loc, scores, priors300)
        assert settled.shape == ()
        assert settled
        assert torch.equal(out, detect(loc, scores, priors300))

    def test_nothing_found(self, priors300):
        scores = torch.zeros(1, 8732, 21)
        out, settled = Detect(21).without_a_look(torch.zeros(1, 8732, 4), scores, priors300)
        assert settled
        assert not out.any()

    def chain(self, links):
        """Boxes of which each suppresses the next one only: greedy NMS keeps every other one."""
        cx = 0.1 + torch.arange(links) * 0.05
        priors = torch.stack([cx, torch.full_like(cx, 0.5), torch.full_like(cx, 0.2), torch.full_like(cx, 0.2)], dim=1)
        score = torch.linspace(0.9, 0.5, links)
        return torch.zeros(1, links, 4), torch.stack([1 - score, score], dim=1)[None], priors

    @pytest.mark.parametrize("rounds", [1, 2, 5, 14])
    def test_says_when_the_rounds_are_too_few(self, rounds):
        chain = self.chain(15)
        detect = Detect(2, nms_thresh=0.5)
        assert not detect.without_a_look(*chain, rounds=rounds)[1]
        for enough in (16, 40):
            out, settled = detect.without_a_look(*chain, rounds=enough)
            assert settled
            assert torch.equal(out, detect(*chain))
        assert int((out[..., 0] > 0).sum()) == 8

    def test_goes_on_until_they_suffice(self):
        chain = self.chain(100)
        detect = Detect(2, nms_thresh=0.5)
        assert not detect.without_a_look(*chain)[1]
        assert torch.equal(detect._with_few_looks(*chain), detect(*chain))
