"""Detect: the golden detections, a slow loop over images and classes, and CUDA's way beside the CPU's."""

import golden_inputs
import numpy as np
import pytest
import slow_formulas as slow
import torch

from layers.functions import Detect


def detected_by_hand(loc, scores, priors, enter=200, top_k=200, conf_thresh=0.01, nms_thresh=0.45, keep_top_k=10**6):
    """One image, with class 0 as background: float64 array [C, top_k, 5]."""
    loc, scores_of_class, priors = loc.tolist(), scores.T.tolist(), priors.tolist()
    out = np.zeros((len(scores_of_class), top_k, 5))
    for class_, score in enumerate(scores_of_class[1:], 1):
        above = [prior for prior in range(len(priors)) if score[prior] > conf_thresh]
        above = sorted(above, key=lambda prior: -score[prior])[:enter]
        boxes = [slow.decode(loc[prior], priors[prior]) for prior in above]
        kept = slow.nms(boxes, [score[prior] for prior in above], nms_thresh)
        for row, i in enumerate(kept[:top_k]):
            out[class_, row] = score[above[i]], *boxes[i]
    limit = np.sort(out[..., 0].ravel())[::-1][:keep_top_k][-1]
    return out * (out[..., :1] >= limit)


@pytest.fixture
def few(priors300):
    """(loc, scores, priors) of two images: the last 300 priors, which are large and overlap."""
    loc, scores = golden_inputs.detect(seed=7)
    return loc[:, -300:].clone(), scores[:, -300:].clone(), priors300[-300:]


def count(out):
    return int((out[..., 0] > 0).sum())


def test_golden(golden, priors300):
    out = Detect(21, 0, 200, 0.01, 0.45)(*golden_inputs.detect(), priors300)
    assert out.dtype == torch.float32
    assert np.array_equal(out[..., 0].numpy() > 0, golden["detect_out"][..., 0] > 0)  # the same boxes are kept
    np.testing.assert_allclose(out.numpy(), golden["detect_out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [
    {}, {"conf_thresh": 0.5}, {"nms_thresh": 0.1}, {"conf_thresh": 0.0, "nms_thresh": 0.9},
    {"conf_thresh": 0.3, "nms_thresh": 1.0}, {"enter": 10, "top_k": 10}, {"enter": 40, "top_k": 5, "nms_thresh": 0.3},
    *({"enter": 400, "keep_top_k": keep} for keep in (1, 7, 30, 10_000)),  # the rule of the paper's code
], ids=str)  # fmt: skip
def test_equals_the_loop(few, options):
    named = {"nms_top_k" if name == "enter" else name: value for name, value in options.items()}
    out = Detect(21, **named)(*few)
    for image in range(2):
        expected = detected_by_hand(few[0][image], few[1][image], few[2], **options)
        np.testing.assert_array_equal(out[image, ..., 0] > 0, expected[..., 0] > 0)
        np.testing.assert_allclose(out[image], expected, atol=1e-5, rtol=0)


def test_the_background_is_empty_whatever_its_index(few):
    out = Detect(21, 3)(*few)
    assert not out[:, 3].any()
    assert (out[:, [0, 1, 2, *range(4, 21)], 0, 0] > 0).all()


def test_scores_must_be_greater_than_the_threshold():
    scores = torch.tensor([[0.0, 0.25, 0.5], [0.0, 0.5, 0.0]])
    out = Detect(3, conf_thresh=0.25)(torch.zeros(1, 2, 4), scores, torch.rand(2, 4) / 9 + torch.eye(2, 4) / 2)
    assert out[0, :, :2, 0].tolist() == [[0, 0], [0.5, 0], [0.5, 0]]


@pytest.mark.parametrize(("nms_thresh", "kept"), [(0.5, 2), (0.49, 1)])
def test_overlap_of_exactly_the_threshold_stays(nms_thresh, kept):
    """Two boxes that share half of their union."""
    priors = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 0.5]])
    scores = torch.tensor([[[0.1, 0.9], [0.2, 0.8]]])
    assert count(Detect(2, 0, 10, 0.01, nms_thresh)(torch.zeros(1, 2, 4), scores, priors)) == kept


def test_of_equal_scores_the_first_prior_wins():
    priors = torch.tensor([[0.5, 0.5, 0.4, 0.4]]) + torch.linspace(0, 0.01, 150)[:, None]
    out = Detect(2)(torch.zeros(1, 150, 4), torch.tensor([[0.1, 0.9]]).expand(1, 150, 2), priors)
    assert count(out) == 1
    assert out[0, 1, 0, 1:].tolist() == pytest.approx([0.3, 0.3, 0.7, 0.7])


def test_nan_scores_count_as_zero(few):
    loc, scores, priors = few
    scores[0], scores[1, :150] = 0, 0
    expected = Detect(21, top_k=20)(loc, scores, priors)
    assert (count(expected[0]), count(expected[1]) > 20) == (0, True)
    scores[0], scores[1, :150] = torch.nan, torch.nan
    assert torch.equal(Detect(21, top_k=20)(loc, scores, priors), expected)


def test_forms_of_the_input(few):
    """The lineage's flat scores, one image, half precision with gradients, no image; the input stays as it is."""
    loc, scores, priors = few
    before = [tensor.clone() for tensor in few]
    expected = Detect(21)(loc, scores, priors)
    assert all(torch.equal(a, b) for a, b in zip(few, before, strict=True))
    assert torch.equal(Detect(21)(loc, scores.view(-1, 21), priors), expected)
    assert torch.equal(Detect(21)(loc[1:], scores[1:], priors), expected[1:])
    loc, scores = loc.bfloat16().requires_grad_(), scores.bfloat16().requires_grad_()
    out = Detect(21)(loc, scores, priors)
    assert not out.requires_grad
    assert torch.equal(out, Detect(21)(loc.float(), scores.float(), priors))
    assert Detect(21)(loc[:0], scores[:0], priors).shape == (0, 21, 200, 5)


def test_wrong_settings_are_refused():
    for name, value in (("nms_thresh", 0), ("nms_thresh", 1.1), ("top_k", 0), ("bkg_label", 21), ("bkg_label", -1)):
        with pytest.raises(ValueError, match=name):
            Detect(21, **{name: value})


@pytest.mark.parametrize(("times", "far"), [(1, 1.0), (1, 1e9), (20, 1e9)])
@pytest.mark.parametrize("options", [{}, {"nms_top_k": 40, "keep_top_k": 20}, {"top_k": 5, "conf_thresh": 0.1}])
def test_cudas_way_equals_the_cpus(monkeypatch, few, times, far, options):
    """Boxes of all images and classes enter one NMS, and must not disturb each other."""
    loc, scores, priors = few[0].repeat(times, 1, 1), few[1].repeat(times, 1, 1), few[2]
    loc[0, 0], scores[0, 0, 2] = far, 0.99  # 1e9: corners at -inf and NaN
    loc[:, :150, :2] -= 50  # boxes outside of the image, to the left
    expected = Detect(21, **options)(loc, scores, priors)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    torch.testing.assert_close(Detect(21, **options)(loc, scores, priors), expected, rtol=0, atol=0, equal_nan=True)
