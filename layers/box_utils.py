"""Box forms, overlap, encoding of boxes against the priors, and matching of objects to priors.

Corner form is (x1, y1, x2, y2), center-size form is (cx, cy, w, h); both in fractions of the image.
"""

import torch
from torchvision import ops

# Scales of the center and size offsets; the same in every published SSD.
VARIANCE = (0.1, 0.2)


def point_form(boxes):
    """Convert center-size form to corner form; [..., 4] -> [..., 4]."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def center_size(boxes):
    """Convert corner form to center-size form; [..., 4] -> [..., 4]."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def intersect(box_a, box_b):
    """Area of the intersection of each pair: corners [A, 4] and [B, 4] -> [A, B]."""
    top_left = torch.maximum(box_a[:, None, :2], box_b[:, :2])
    bottom_right = torch.minimum(box_a[:, None, 2:], box_b[:, 2:])
    return (bottom_right - top_left).clamp(min=0).prod(dim=-1)


def jaccard(box_a, box_b):
    """Jaccard overlap (intersection over union) of each pair: corners [A, 4] and [B, 4] -> [A, B].

    NaN if neither box of a pair has an area.
    """
    return ops.box_iou(box_a, box_b.t().contiguous().t())  # twice as fast if each coordinate is contiguous


def encode(matched, priors, variances):
    """Return the offsets from priors to boxes, the regression targets (equation 2 of the paper).

    Args:
        matched: corners [..., P, 4], the box that each prior is matched to.
        priors: center-size [P, 4] (or [..., P, 4]).
        variances: (center, size) scales of the offsets.

    Returns:
        [..., P, 4]: (cx, cy, w, h) offsets. The size offset of a box without area is infinite.
    """
    boxes = center_size(matched)
    center = (boxes[..., :2] - priors[..., :2]) / (variances[0] * priors[..., 2:])
    size = torch.log(boxes[..., 2:] / priors[..., 2:]) / variances[1]
    return torch.cat([center, size], dim=-1)


def decode(loc, priors, variances):
    """The inverse of `encode`: offsets [..., P, 4] and priors [P, 4] (or [..., P, 4]) -> corners [..., P, 4]."""
    center = priors[..., :2] + loc[..., :2] * variances[0] * priors[..., 2:]
    size = priors[..., 2:] * torch.exp(loc[..., 2:] * variances[1])
    top_left = center - size / 2
    return torch.cat([top_left, top_left + size], dim=-1)


def log_sum_exp(x):
    """log(sum(exp(x))) over the last axis, with keepdim: [N, C] -> [N, 1]."""
    return torch.logsumexp(x, dim=-1, keepdim=True)


def nms(boxes, scores, overlap=0.5, top_k=200):
    """Non-maximum suppression of one class, with the return values of ssd.pytorch.

    Args:
        boxes: corners [N, 4].
        scores: [N].
        overlap: a box is dropped if its IoU with a kept box of higher score is greater than this.
        top_k: only this many boxes, those with the highest scores, are considered.

    Returns:
        (keep, count): int64 [N]; its first `count` entries are the kept indices, best first, the others are 0.
    """
    keep = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    best = scores.topk(min(top_k, len(scores))).indices
    kept = best[ops.nms(boxes[best].float(), scores[best].float(), overlap)]
    keep[: len(kept)] = kept
    return keep, len(kept)


@torch.no_grad()
def match(threshold, truths, priors, variances, labels, loc_t, conf_t, idx):
    """Match the priors to the objects of one image and write its row of the targets.

    Args:
        threshold: minimum overlap of a match, see `match_priors`.
        truths: corners [N, 4]; N may be 0.
        priors: center-size [P, 4].
        variances: (center, size) scales of the offsets.
        labels: [N], classes from 0, without the background.
        loc_t: [batch, P, 4]; row `idx` receives the encoded boxes, 0 at unmatched priors.
        conf_t: [batch, P]; row `idx` receives the classes from 1, 0 (background) at unmatched priors.
        idx: the row.
    """
    truth_of_prior = match_priors(threshold, truths, priors)  # [P]
    prior = (truth_of_prior >= 0).nonzero()[:, 0]  # about 1 % of the priors: encode only these
    truth = truth_of_prior[prior]
    loc_t[idx], conf_t[idx] = 0, 0
    loc_t[idx, prior] = encode(truths[truth], priors[prior], variances).to(loc_t.dtype)
    conf_t[idx, prior] = (labels[truth] + 1).to(conf_t.dtype)


def match_priors(threshold, truths, priors):
    """Match each prior to an object (section 2.2 of the paper, "Matching strategy").

    First, each object is matched to one prior, greedily by descending overlap, as in the paper's code. Two objects with
    the same best prior get one each. Then each remaining prior is matched to the object with the highest overlap if
    that is at least `threshold`. An object without area gets no prior.

    Args:
        threshold: in 0..1.
        truths: corners [N, 4]; N may be 0.
        priors: center-size [P, 4].

    Returns:
        int64 [P]: index of the object, -1 at unmatched priors.
    """
    if len(truths) == 0:
        return torch.full((len(priors),), -1, device=priors.device)
    overlaps = jaccard(truths, point_form(priors)).nan_to_num(0.0)  # [N, P]
    best_overlap, best_truth = overlaps.max(dim=0)
    truth_of_prior = best_truth.where(best_overlap >= threshold, -1)
    # If an object and a prior overlap each other most, among the unmatched ones, the greedy matching pairs them. Each
    # round matches all such pairs. Only an object whose best prior went to another object needs another round.
    while True:
        best_overlap, prior = overlaps.max(dim=1)  # [N]
        rival = overlaps[:, prior].argmax(dim=0)  # [N]: the object that overlaps this prior most
        wanting = best_overlap > 0
        settled = wanting & (rival == torch.arange(len(truths), device=rival.device))
        truth = settled.nonzero()[:, 0]
        truth_of_prior[prior[truth]] = truth
        if torch.equal(settled, wanting):
            return truth_of_prior
        overlaps[truth], overlaps[:, prior[truth]] = 0, 0
