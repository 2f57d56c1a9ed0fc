"""Forms of boxes, their overlap, their encoding against the priors, and the matching of objects to priors.

Corner form is (x1, y1, x2, y2), centre-size form is (cx, cy, w, h); both in fractions of the picture.
"""

import torch
from torchvision.ops import box_convert
from torchvision.ops import nms as torchvision_nms

# Scales of the centre and size offsets; the same in every published SSD.
VARIANCE = (0.1, 0.2)


def point_form(boxes):
    """Centre-size form to corner form; [..., 4] -> [..., 4]."""
    return box_convert(boxes, "cxcywh", "xyxy")


def center_size(boxes):
    """Corner form to centre-size form; [..., 4] -> [..., 4]."""
    return box_convert(boxes, "xyxy", "cxcywh")


def jaccard(box_a, box_b):
    """Jaccard overlap (intersection over union) of each pair: corners [A, 4] and [B, 4] -> [A, B].

    NaN where both boxes are without area.
    """
    # Coordinate by coordinate: each step runs along [B] in memory, and what it makes is used up in place.
    a, b = box_a[:, None].unbind(-1), box_b.t().contiguous().unbind()  # x1, y1, x2, y2: [A, 1] and [B]
    width = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0)
    height = torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).clamp_(min=0)
    intersection = width.mul_(height)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return intersection / areas.sub_(intersection)


def encode(matched, priors, variances):
    """Offsets that turn priors into boxes: what the network regresses (equation 2 of the paper).

    Args:
        matched: corners [..., P, 4], the box of each prior.
        priors: centre-size [P, 4] (or [..., P, 4]).
        variances: (centre, size) scales of the offsets.

    Returns:
        [..., P, 4]: (cx, cy, w, h) offsets. A box without area has an infinite one.
    """
    boxes = center_size(matched)
    centre = (boxes[..., :2] - priors[..., :2]) / (variances[0] * priors[..., 2:])
    size = torch.log(boxes[..., 2:] / priors[..., 2:]) / variances[1]
    return torch.cat([centre, size], dim=-1)


def decode(loc, priors, variances):
    """The inverse of `encode`: offsets [..., P, 4] and priors [P, 4] (or [..., P, 4]) -> corners [..., P, 4]."""
    centre = priors[..., :2] + loc[..., :2] * variances[0] * priors[..., 2:]
    size = priors[..., 2:] * torch.exp(loc[..., 2:] * variances[1])
    top_left = centre - size / 2
    return torch.cat([top_left, top_left + size], dim=-1)


def log_sum_exp(x):
    """log(sum(exp(x))) over the last axis, kept: [N, C] -> [N, 1]. Part of the lineage's interface."""
    return torch.logsumexp(x, dim=-1, keepdim=True)


def nms(boxes, scores, overlap=0.5, top_k=200):
    """Non-maximum suppression of one class among its `top_k` best scores, in the lineage's form.

    Args:
        boxes: corners [N, 4].
        scores: [N].
        overlap: a box that overlaps a better kept one by more than this is dropped.
        top_k: boxes that enter.

    Returns:
        (keep, count): int64 [N], of which the first `count` are the kept indices, best first; the rest is 0.
    """
    keep = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    best = scores.topk(min(top_k, len(scores))).indices
    kept = best[torchvision_nms(boxes[best].float(), scores[best].float(), overlap)]
    keep[: len(kept)] = kept
    return keep, len(kept)


def match(threshold, truths, priors, variances, labels, loc_t, conf_t, idx):
    """Match the objects of one picture and write its row of the targets, in the lineage's form.

    Args:
        threshold: overlap from which on a prior takes an object that isn't its own.
        truths: corners [N, 4]; N may be 0.
        priors: centre-size [P, 4].
        variances: (centre, size) scales of the offsets.
        labels: [N], classes from 0, without the background.
        loc_t: [batch, P, 4], row `idx` receives the encoded boxes (0 where there is none).
        conf_t: [batch, P], row `idx` receives the classes, 0 for background.
        idx: the row.
    """
    real = torch.ones(1, len(truths), dtype=torch.bool, device=truths.device)
    truth_of_prior, positive = match_priors(threshold, truths[None], real, priors)
    loc_t[idx], conf_t[idx] = (
        target[0]
        for target in targets_of_match(truths[None], labels[None], truth_of_prior, positive, priors, variances)
    )


def match_priors(threshold, truths, real, priors):
    """Match priors to the objects of a batch of pictures (section 2.2 of the paper, "Matching strategy").

    Every object first gets one prior of its own, greedily by overlap over all pairs, as the paper's code does it: two
    objects that share their best prior both keep one. Then each remaining prior joins the object that it overlaps
    most, if by `threshold` or more. An object without area overlaps nothing and gets no prior.

    Args:
        threshold: in 0..1.
        truths: corners [B, N, 4], padded to the largest N of the batch.
        real: bool [B, N], False where a row of `truths` is padding.
        priors: centre-size [P, 4].

    Returns:
        (truth_of_prior, positive): int64 [B, P], the object that each prior overlaps most or owns; and bool [B, P],
        whether the prior is matched to it.
    """
    batch, objects = real.shape
    if objects == 0:
        shape = (batch, len(priors))
        return (
            torch.zeros(shape, dtype=torch.int64, device=priors.device),
            torch.zeros(shape, dtype=torch.bool, device=priors.device),
        )
    overlaps = jaccard(truths.reshape(-1, 4), point_form(priors)).view(batch, objects, -1)
    overlaps = overlaps.nan_to_num(0.0).masked_fill_(~real[..., None], -1.0)
    best_overlap, truth_of_prior = overlaps.max(dim=1)
    positive = best_overlap >= threshold
    for picture, truth, prior in _own_priors(overlaps):
        truth_of_prior[picture, prior] = truth
        positive[picture, prior] = True
    return truth_of_prior, positive


def _own_priors(overlaps):
    """One prior for each object, greedily by overlap: yields index tensors (picture, truth, prior) of the pairs.

    A pair in which each is the other's best among those still free is part of the greedy matching, whatever the
    rest is. So each round settles all such pairs at once; a second round is only needed for objects that lost their
    best prior to another. Overlaps: [B, N, P]; entries of 0 or less can't be matched.
    """
    free = overlaps
    while True:
        best, prior = free.max(dim=2)  # [B, N]
        rival = free.gather(2, prior[:, None, :].expand(-1, free.shape[1], -1)).max(dim=1).indices
        wanted = best > 0
        picture, truth = (wanted & (rival == torch.arange(free.shape[1], device=free.device))).nonzero(as_tuple=True)
        yield picture, truth, prior[picture, truth]
        if int(wanted.sum()) == len(picture):
            return
        free = free.clone() if free is overlaps else free
        free[picture, :, prior[picture, truth]] = 0
        free[picture, truth, :] = 0


def targets_of_match(truths, labels, truth_of_prior, positive, priors, variances):
    """Regression and class targets of matched priors.

    Args:
        truths: corners [B, N, 4].
        labels: [B, N], classes from 0, without the background.
        truth_of_prior, positive: [B, P], from `match_priors`.
        priors: centre-size [P, 4].
        variances: (centre, size) scales of the offsets.

    Returns:
        (loc_t, conf_t): float [B, P, 4] encoded boxes and int64 [B, P] classes from 1; both 0 at unmatched priors.
    """
    if truths.shape[1] == 0:
        return truths.new_zeros(*positive.shape, 4), positive.long()
    loc_t = truths.new_zeros(*positive.shape, 4)
    conf_t = torch.zeros_like(truth_of_prior)
    picture, prior = positive.nonzero(as_tuple=True)  # one prior in a hundred: only these are worth encoding
    truth = truth_of_prior[picture, prior]
    loc_t[picture, prior] = encode(truths[picture, truth], priors[prior], variances)
    conf_t[picture, prior] = labels[picture, truth].long() + 1
    return loc_t, conf_t
