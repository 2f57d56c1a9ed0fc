"""From the network's offsets and class scores to final boxes: decoding and non-maximum suppression."""

import torch
from torch import nn

from ..box_utils import VARIANCE, decode

TILE = 64  # boxes of a class that are compared with all better ones at a time, on a CPU
FEW = 0.01  # share of the scores that are candidates, up to which sorting them is faster than a search through all
ROUNDS = 24  # of NMS on a GPU before anyone looks whether it has ended; photographs take 7 to 15 at a threshold of 0.01


class Detect(nn.Module):
    """Decode the boxes, and keep the best of each class after non-maximum suppression (section 2 of the paper).

    By default each class enters with its 200 best boxes and keeps what NMS leaves of them: 77.43 mAP was measured so.
    The paper's own code enters 400 a class and then keeps the 200 best over all classes: ``nms_top_k=400,
    keep_top_k=200``.

    There is no loop over pictures or classes: all of them go through NMS together (`_suppress`).

    Args:
        num_classes: with the background.
        bkg_label: index of the background, whose rows stay empty.
        top_k: rows of the result for each class.
        conf_thresh: scores must be greater than this.
        nms_thresh: a box that overlaps a better one of its class by more than this is dropped.
        variance: scales of the centre and size offsets.
        nms_top_k: boxes of each class that enter NMS; `top_k` unless given.
        keep_top_k: boxes that a picture keeps over all classes; all unless given.

    Raises:
        ValueError: a threshold or a count is out of range.
    """

    def __init__(
        self,
        num_classes,
        bkg_label=0,
        top_k=200,
        conf_thresh=0.01,
        nms_thresh=0.45,
        variance=VARIANCE,
        nms_top_k=None,
        keep_top_k=None,
    ):
        super().__init__()
        if not 0 < nms_thresh <= 1:
            raise ValueError(f"nms_thresh must lie in (0, 1], not {nms_thresh}")
        if top_k < 1 or not 0 <= bkg_label < num_classes:
            raise ValueError(f"top_k ({top_k}) must be 1 or more, bkg_label ({bkg_label}) in 0..{num_classes - 1}")
        self.num_classes = num_classes
        self.background_label = bkg_label
        self.top_k = top_k
        self.conf_thresh = conf_thresh
        self.nms_thresh = nms_thresh
        self.variance = tuple(variance)
        self.nms_top_k = nms_top_k or top_k
        self.keep_top_k = keep_top_k

    @torch.no_grad()
    def forward(self, loc_data, conf_data, prior_data):
        """Detect in a batch of pictures.

        Args:
            loc_data: offsets [B, P, 4].
            conf_data: class probabilities [B, P, C] (or [B * P, C]).
            prior_data: centre-size [P, 4].

        Returns:
            float32 [B, C, top_k, 5]: rows (score, x1, y1, x2, y2), corners as fractions of the picture, best first,
            padded with zeros.
        """
        if len(loc_data) == 0:
            return loc_data.new_zeros(0, self.num_classes, self.top_k, 5, dtype=torch.float32)
        if loc_data.is_cuda:
            return self._with_few_looks(loc_data, conf_data, prior_data)
        scores, boxes = self._candidates(loc_data, conf_data, prior_data, look=True)
        return self._pack(_suppress(boxes, scores, self.nms_thresh), scores, boxes, len(loc_data))

    @torch.no_grad()
    def without_a_look(self, loc_data, conf_data, prior_data, rounds=ROUNDS):
        """As `forward`, but nothing depends on values before the result is complete: a CUDA graph can hold all of it.

        Args:
            loc_data, conf_data, prior_data: as for `forward`; at least one picture.
            rounds: of NMS, see `_suppress`; at most `nms_top_k` are ever needed.

        Returns:
            (rows as from `forward`, bool scalar tensor: whether the rounds sufficed; else drop the rows).
        """
        scores, boxes = self._candidates(loc_data, conf_data, prior_data, look=False)
        kept, settled = _suppress_at_once(boxes, scores, self.nms_thresh, rounds)
        return self._pack(kept, scores, boxes, len(loc_data)), settled

    def _with_few_looks(self, loc_data, conf_data, prior_data, rounds=ROUNDS):
        """`forward` for devices where each look at a value makes the program wait for all that is under way."""
        while True:
            rows, settled = self.without_a_look(loc_data, conf_data, prior_data, rounds)
            if bool(settled):
                return rows
            rounds *= 4  # seldom: a chain of boxes, each suppressing the next, was longer

    def _candidates(self, loc_data, conf_data, prior_data, look):
        """What enters NMS, best first: scores [B * C, K], 0 where there is none, and corners [B * C, K, 4].

        look: whether anything but values may depend on the scores.
        """
        batch, num_priors = len(loc_data), len(prior_data)
        scores = conf_data.float().reshape(batch, num_priors, self.num_classes)
        candidate = scores > self.conf_thresh  # NaN isn't
        candidate[..., self.background_label] = False
        if look and int(candidate.count_nonzero()) <= FEW * candidate.numel():
            scores, prior = self._sort_few(scores, candidate)  # [B * C, K]
        else:
            scores, prior = self._best_of_each_class(scores, candidate, look)
        chosen = prior.view(batch, -1)
        loc = loc_data.float().gather(1, chosen[..., None].expand(-1, -1, 4))
        return scores, decode(loc, prior_data[chosen].float(), self.variance).view(*scores.shape, 4)

    def _best_of_each_class(self, scores, candidate, look):
        """The best candidates, [B, P, C] -> scores and prior indices [B * C, K], best first; 0 marks no candidate."""
        scores = scores.masked_fill(~candidate, 0.0).transpose(1, 2).flatten(0, 1)
        k = min(self.nms_top_k, scores.shape[1])
        if look:  # don't carry more columns than the fullest class fills
            k = max(1, min(k, int(candidate.sum(dim=1).max())))
        return scores.topk(k, dim=1)

    def _sort_few(self, scores, candidate):
        """As `_best_of_each_class`, but what is no candidate is never touched again."""
        picture, prior, label = candidate.nonzero(as_tuple=True)
        score, row = scores[picture, prior, label], picture * self.num_classes + label
        order = score.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]  # by row, and best first within each
        score, row, prior = score[order], row[order], prior[order]
        rows = len(scores) * self.num_classes
        first = torch.searchsorted(row, torch.arange(rows, device=row.device))
        column = torch.arange(len(row), device=row.device) - first[row]
        enters = (column < self.nms_top_k).nonzero()[:, 0]
        score, row, prior, column = score[enters], row[enters], prior[enters], column[enters]
        k = int(column.max()) + 1 if len(column) else 1
        table = score.new_zeros(rows, k).index_put_((row, column), score)
        return table, prior.new_zeros(rows, k).index_put_((row, column), prior)

    def _cut_over_classes(self, kept, scores, batch):
        """Keep the `keep_top_k` best boxes of each picture over all classes."""
        kept_scores = (scores * kept).view(batch, -1)  # [B, C * K]
        best = kept_scores.topk(min(self.keep_top_k, kept_scores.shape[1]), dim=1).indices
        cut = torch.zeros_like(kept_scores, dtype=torch.bool).scatter_(1, best, True)
        return kept & cut.view_as(kept)

    def _pack(self, kept, scores, boxes, batch):
        """Move the kept boxes to the front of their rows: bool [B * C, K] -> [B, C, top_k, 5]."""
        if self.keep_top_k is not None:
            kept = self._cut_over_classes(kept, scores, batch)
        place = (kept.cumsum(dim=1) - 1).masked_fill(~kept, self.top_k).clamp_(max=self.top_k)
        rows = torch.cat([scores[..., None], boxes], dim=-1)
        packed = rows.new_zeros(len(rows), self.top_k + 1, 5)  # the last row takes what isn't kept
        packed.scatter_(1, place[..., None].expand(-1, -1, 5), rows)
        return packed[:, : self.top_k].view(batch, self.num_classes, self.top_k, 5)


def _suppress(boxes, scores, nms_thresh):
    """Greedy non-maximum suppression of many independent rows at once.

    Greedy NMS keeps a box exactly if no kept better box overlaps it. Repeating that sentence from "all are kept" until
    nothing changes arrives at the greedy answer: after n rounds all boxes are right whose chain of suppressors is
    shorter than n, so the fixed point is unique, and real pictures reach it in a few rounds.

    The boxes take their turn in tiles, best first: what lies in earlier tiles is settled then, worse boxes aren't
    compared with better ones a second time, and the pairs of a tile fit into a CPU's cache.

    Args:
        boxes: corners [R, K, 4], best first.
        scores: [R, K]; 0 marks an empty place.
        nms_thresh: overlap above which the worse box goes.

    Returns:
        bool [R, K].
    """
    present = scores > 0
    kept = present.clone()
    for start in range(0, boxes.shape[1], TILE):
        end = start + TILE
        suppresses = _overlapping(boxes[:, :end], boxes[:, start:end], nms_thresh)  # [R, end, tile]
        free = present[:, start:end] & ~_any_of(kept[:, :start], suppresses[:, :start])
        kept[:, start:end] = _settle(free, suppresses[:, start:].triu(diagonal=1))
    return kept


def _suppress_at_once(boxes, scores, nms_thresh, rounds):
    """As `_suppress`, but with a number of rounds that is known ahead.

    Returns:
        (bool [R, K], bool scalar tensor: whether the last round changed nothing, so that this is the fixed point).
    """
    present = kept = scores > 0
    suppresses = _overlapping(boxes, boxes, nms_thresh).triu_(diagonal=1)
    for _ in range(rounds):
        before, kept = kept, present & ~_any_of(kept, suppresses)
    return kept, (before == kept).all()


def _settle(free, suppresses):
    """The fixed point within a tile.

    Args:
        free: bool [R, T], no box of an earlier tile suppresses these.
        suppresses: float32 [R, T, T], whether the first box is better and overlaps the second too much.
    """
    kept = free
    for _ in range(free.shape[1]):
        before, kept = kept, free & ~_any_of(kept, suppresses)
        if torch.equal(before, kept):
            break
    return kept


def _any_of(kept, suppresses):
    """Whether any kept box suppresses: bool [R, N] and float32 [R, N, T] -> bool [R, T]."""
    return torch.bmm(kept[:, None].to(suppresses.dtype), suppresses)[:, 0] > 0


def _overlapping(boxes, others, nms_thresh):
    """Which pairs overlap too much: corners [R, N, 4] and [R, T, 4] -> 0 or 1, float32 [R, N, T].

    Written out rather than taken from torchvision's box_iou, as these few million pairs are most of Detect's time: the
    work is done in place, one coordinate at a time (each in one piece, to be vectorised), and without a division.
    """
    x1, y1, x2, y2 = boxes.permute(2, 0, 1).contiguous()[..., None]  # [R, N, 1]
    u1, v1, u2, v2 = others.permute(2, 0, 1).contiguous()[:, :, None]  # [R, 1, T]
    width = _common_length(x1, x2, u1, u2).clamp_(min=0)  # so a negative height never makes a positive intersection
    intersection = width.mul_(_common_length(y1, y2, v1, v2))
    # intersection / union > t, with union = both areas - intersection
    share = nms_thresh / (1 + nms_thresh)
    return intersection.gt_((x2 - x1) * (y2 - y1) * share + (u2 - u1) * (v2 - v1) * share)


def _common_length(first, last, other_first, other_last):
    """Length of the intersection of all pairs of intervals, [R, N, 1] and [R, 1, T] -> [R, N, T]; negative: the gap."""
    return torch.minimum(last, other_last).sub_(torch.maximum(first, other_first))
