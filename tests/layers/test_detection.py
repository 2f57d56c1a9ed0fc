"""Detect: the golden detections, a slow loop over images and classes, and CUDA's way beside the CPU's."""

import golden_inputs
import numpy as np
import pytest
import slow_formulas as slow
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from layers.functions import Detect, detection


def detected_by_hand(loc, scores, priors, *, enter=200, top_k=200, conf_thresh=0.01, nms_thresh=0.45, keep_top_k=None):
    """One image: {class: rows (score, corners), best first}, for every class but the background."""
    loc, scores_of_class, priors = loc.tolist(), scores.T.tolist(), priors.tolist()
    found = {}
    for class_, score in enumerate(scores_of_class[1:], 1):
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


def small_input(seed, images=2, priors=300, classes=5, hot=120):
    """(loc, scores, priors): fewer priors, of which many are sure of something."""
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(images, priors, 4, generator=generator) * 0.5
    conf = torch.randn(images, priors, classes, generator=generator)
    conf[..., 0] += 5
    for image in range(images):
        chosen = torch.randperm(priors, generator=generator)[:hot]
        conf[image, chosen, torch.randint(1, classes, (hot,), generator=generator)] += 7
    center_size = torch.rand(priors, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.2, 0.2])
    return loc, conf.softmax(-1), center_size + torch.tensor([0.2, 0.2, 0.1, 0.1])


class TestGolden:
    def test_detections(self, golden, priors300):
        out = Detect(21, 0, 200, 0.01, 0.45)(*golden_inputs.detect(), priors300)
        assert out.dtype == torch.float32
        assert np.array_equal(out[..., 0].numpy() > 0, golden["detect_out"][..., 0] > 0)  # the same boxes are kept
        np.testing.assert_allclose(out.numpy(), golden["detect_out"], atol=1e-5, rtol=0)

    def test_a_batch_equals_its_singles(self, priors300):
        loc, scores = golden_inputs.detect(seed=1)
        batch = Detect(21)(loc, scores, priors300)
        for index in range(2):
            single = slice(index, index + 1)
            assert torch.equal(batch[single], Detect(21)(loc[single], scores[single], priors300))


class TestAgainstTheLoop:
    @pytest.mark.parametrize(
        ("conf_thresh", "nms_thresh"), [(0.01, 0.45), (0.5, 0.45), (0.01, 0.1), (0.0, 0.9), (0.3, 1.0)]
    )
    def test_thresholds(self, conf_thresh, nms_thresh):
        loc, scores, priors = small_input(7)
        out = Detect(5, 0, 200, conf_thresh, nms_thresh)(loc, scores, priors)
        for image in range(2):
            found = detected_by_hand(loc[image], scores[image], priors, conf_thresh=conf_thresh, nms_thresh=nms_thresh)
            assert sum(map(len, found.values())) > 20
            assert_rows(out[image], found)

    @pytest.mark.parametrize(("top_k", "enter", "kept"), [(10, 10, 4), (5, 40, 5)])
    def test_number_of_boxes_that_enter_and_remain(self, top_k, enter, kept):
        loc, scores, priors = small_input(4)
        found = detected_by_hand(loc[0], scores[0], priors, enter=enter, top_k=top_k, nms_thresh=0.9)
        assert min(map(len, found.values())) >= kept
        assert_rows(Detect(5, 0, top_k, 0.01, 0.9, nms_top_k=enter)(loc, scores, priors)[0], found)

    @pytest.mark.parametrize("keep_top_k", [1, 7, 30, 10_000])
    def test_the_rule_of_the_papers_code(self, keep_top_k):
        """400 per class before NMS, then the best over all classes."""
        loc, scores, priors = small_input(5)
        out = Detect(5, 0, 200, 0.01, 0.45, nms_top_k=400, keep_top_k=keep_top_k)(loc, scores, priors)
        for image in range(2):
            found = detected_by_hand(loc[image], scores[image], priors, enter=400, keep_top_k=keep_top_k)
            assert_rows(out[image], found)


class TestForm:
    @pytest.mark.parametrize("background", [0, 3])
    def test_rows(self, background):
        """Sorted, padded with zeros; those of the background are empty whatever its index."""
        out = Detect(5, background)(*small_input(1))
        assert out.shape == (2, 5, 200, 5)
        assert not out[:, background].any()
        assert (out[:, [c for c in range(5) if c != background], 0, 0] > 0).all()
        assert (out[..., :-1, 0] >= out[..., 1:, 0]).all()
        assert not out[out[..., 0] == 0].any()

    def test_scores_must_be_greater_than_the_threshold(self):
        scores = torch.tensor([[[0.0, 0.25], [0.0, 0.5]]])
        priors = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1]])
        out = Detect(2, 0, 10, 0.25, 0.45)(torch.zeros(1, 2, 4), scores, priors)
        assert out[0, 1, :3, 0].tolist() == [0.5, 0, 0]

    def test_overlap_of_exactly_the_threshold_stays(self):
        """Two boxes that share half of their union."""
        priors = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 0.5]])
        scores = torch.tensor([[[0.1, 0.9], [0.2, 0.8]]])
        for thresh, kept in ((0.5, 2), (0.49, 1)):
            out = Detect(2, 0, 10, 0.01, thresh)(torch.zeros(1, 2, 4), scores, priors)
            assert int((out[..., 0] > 0).sum()) == kept

    def test_of_equal_scores_the_first_prior_wins(self):
        priors = torch.tensor([[0.5, 0.5, 0.4, 0.4]]) + torch.linspace(0, 0.01, 150)[:, None]
        scores = torch.tensor([[0.1, 0.9]]).expand(1, 150, 2)
        out = Detect(2)(torch.zeros(1, 150, 4), scores, priors)
        assert int((out[..., 0] > 0).sum()) == 1
        assert out[0, 1, 0, 1:].tolist() == pytest.approx([0.3, 0.3, 0.7, 0.7])

    def test_nan_scores_count_as_zero(self):
        loc, scores, priors = small_input(2)
        scores[0], scores[1, :150] = 0, 0
        expected = Detect(5, top_k=20)(loc, scores, priors)
        assert not expected[0].any()
        assert expected[1].any()
        scores[0], scores[1, :150] = torch.nan, torch.nan
        assert torch.equal(Detect(5, top_k=20)(loc, scores, priors), expected)

    def test_the_lineages_flat_scores(self):
        loc, scores, priors = small_input(2)
        assert torch.equal(Detect(5)(loc, scores.view(-1, 5), priors), Detect(5)(loc, scores, priors))

    def test_half_precision_and_gradients_in_the_input(self):
        """The work is done in float32 and without gradients."""
        loc, scores, priors = small_input(6)
        loc, scores = loc.bfloat16().requires_grad_(), scores.bfloat16().requires_grad_()
        out = Detect(5)(loc, scores, priors)
        assert not out.requires_grad
        assert torch.equal(out, Detect(5)(loc.float(), scores.float(), priors))

    def test_the_input_stays_as_it_is(self):
        given, same = small_input(6), small_input(6)
        Detect(5)(*given)
        assert all(torch.equal(a, b) for a, b in zip(given, same, strict=True))

    def test_an_empty_batch(self):
        assert Detect(5)(torch.zeros(0, 300, 4), torch.zeros(0, 300, 5), torch.rand(300, 4)).shape == (0, 5, 200, 5)

    @pytest.mark.parametrize(
        "arguments", [{"nms_thresh": 0}, {"nms_thresh": -1}, {"nms_thresh": 1.1}, {"top_k": 0}, {"bkg_label": 21}]
    )
    def test_wrong_settings_are_refused(self, arguments):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            Detect(21, **arguments)


class TestOnCuda:
    """One NMS for the whole batch, in which images and classes must not disturb each other."""

    @pytest.mark.parametrize("images", [1, 40])  # all together, or (many boxes) class by class
    @pytest.mark.parametrize("options", [{}, {"nms_top_k": 40, "keep_top_k": 20}, {"top_k": 5, "conf_thresh": 0.9}])
    def test_equals_the_cpu(self, monkeypatch, images, options):
        loc, scores, priors = small_input(3, images=images)
        loc[0, 0], scores[0, 0] = 1e9, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])  # corners at -inf and NaN
        loc[:, :20, :2] *= 50  # boxes outside of the image, to the left and right
        expected = Detect(5, **options)(loc, scores, priors)
        monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
        out = Detect(5, **options)(loc, scores, priors)
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)

    def test_synchronizes_twice(self, monkeypatch):
        """A fake tensor raises when its values would decide a shape: only nonzero and NMS may."""
        calls = []

        def nonzero(tensor, as_tuple):
            calls.append("nonzero")
            return tuple(torch.zeros(7, dtype=torch.int64, device=tensor.device) for _ in range(tensor.dim()))

        def nms(boxes, scores, row, threshold):
            calls.append("nms")
            return torch.arange(5, device=boxes.device)

        monkeypatch.setattr(torch.Tensor, "nonzero", nonzero)
        monkeypatch.setattr(detection, "batched_nms", nms)
        with FakeTensorMode():
            shapes = (2, 8732, 4), (2, 8732, 21), (8732, 4)
            out = Detect(21, keep_top_k=100)(*(torch.rand(shape, device="cuda") for shape in shapes))
        assert (out.device.type, out.shape, calls) == ("cuda", (2, 21, 200, 5), ["nonzero", "nms"])
