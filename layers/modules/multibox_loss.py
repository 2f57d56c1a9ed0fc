"""The training objective of SSD (section 2.2 of the paper, equations 1 to 3, and "Hard negative mining")."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from ..box_utils import VARIANCE, match_priors, targets_of_match


class MultiBoxLoss(nn.Module):
    """Localisation loss (smooth L1) and confidence loss (softmax) over matched priors and mined negatives.

    Both are sums over the batch divided by N, the number of matched priors of the whole batch (of all ranks in
    distributed training); where N is 0 both are 0 and still carry a graph.

    The arguments are the lineage's, in its order; `prior_for_matching`, `bkg_label`, `neg_mining`, `neg_overlap`,
    `encode_target` and `use_gpu` had no effect there and have none here.

    Args:
        num_classes: with the background.
        overlap_thresh: overlap from which on a prior takes an object.
        neg_pos: at most this many negatives for each positive of the same picture.
        variance: scales of the centre and size offsets.
    """

    def __init__(
        self,
        num_classes,
        overlap_thresh=0.5,
        prior_for_matching=True,
        bkg_label=0,
        neg_mining=True,
        neg_pos=3,
        neg_overlap=0.5,
        encode_target=False,
        use_gpu=True,
        variance=VARIANCE,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.threshold = overlap_thresh
        self.negpos_ratio = neg_pos
        self.variance = tuple(variance)

    def forward(self, predictions, targets):
        """Compute the two losses, in float32 where predictions are of half precision.

        Args:
            predictions: (loc [B, P, 4], conf [B, P, C], priors [P, 4] centre-size), as the train phase gives them.
            targets: for each picture float [objects, 5], (x1, y1, x2, y2) as fractions and the class from 0.
                Pictures without objects are [0, 5].

        Returns:
            (loss_l, loss_c): localisation and confidence loss, scalars.
        """
        loc, conf, priors = predictions
        loc_t, conf_t = self.match_targets(targets, priors[: loc.shape[1]].float())
        loss_l, loss_c = self.sums(loc, conf, loc_t, conf_t)
        n = matched_priors(conf_t)
        return loss_l / n, loss_c / n

    def sums(self, loc, conf, loc_t, conf_t):
        """The two losses of matched pictures before the division by N, in float32 (float64 stays as it is).

        Args:
            loc, conf: predictions [B, P, 4] and [B, P, C].
            loc_t, conf_t: their targets from `match_targets`, [B, P, 4] and int64 [B, P].
        """
        loc, conf = (tensor.float() if tensor.dtype.itemsize < 4 else tensor for tensor in (loc, conf))
        positive = conf_t > 0  # [B, P]
        selected = positive | self._hard_negatives(conf, conf_t)
        loss_l = _sum_of_rows(F.smooth_l1_loss, loc, loc_t, positive)
        loss_c = _sum_of_rows(F.cross_entropy, conf, conf_t, selected)
        return loss_l, loss_c

    @torch.no_grad()
    def match_targets(self, targets, priors):
        """Regression and class targets of a batch: float [B, P, 4] and int64 [B, P]."""
        targets = [target.to(priors.device, priors.dtype) for target in targets]
        padded = pad_sequence(targets, batch_first=True)  # [B, N, 5]
        counts = torch.tensor([len(target) for target in targets])
        real = (torch.arange(padded.shape[1]) < counts[:, None]).to(priors.device)
        truths, labels = padded[..., :4], padded[..., 4]
        truth_of_prior, positive = match_priors(self.threshold, truths, real, priors)
        return targets_of_match(truths, labels, truth_of_prior, positive, priors, self.variance)

    @torch.no_grad()
    def _hard_negatives(self, conf, conf_t):
        """The negatives of highest loss, `negpos_ratio` for each positive of their picture: bool [B, P]."""
        positive = conf_t > 0
        loss = F.cross_entropy(conf.flatten(0, 1), conf_t.flatten(), reduction="none").view_as(conf_t)
        count = (self.negpos_ratio * positive.sum(dim=1, keepdim=True)).clamp(max=positive.shape[1] - 1)
        order = loss.masked_fill(positive, 0.0).argsort(dim=1, descending=True)
        mined = torch.arange(positive.shape[1], device=positive.device) < count  # by rank
        return torch.zeros_like(positive).scatter_(1, order, mined) & ~positive


def _sum_of_rows(loss, predicted, wanted, rows):
    """Sum of a loss over the chosen rows: predictions [B, P, ...], targets [B, P, ...], bool [B, P] -> scalar."""
    if predicted.is_cuda:  # picking rows would make the host wait for their number; the device computes all as quickly
        # masked_fill, not a product with the mask: infinity in a row that doesn't count must not turn into NaN.
        losses = loss(predicted.flatten(0, 1), wanted.flatten(0, 1), reduction="none").view(*rows.shape, -1)
        return losses.masked_fill(~rows[..., None], 0.0).sum()
    return loss(predicted[rows], wanted[rows], reduction="sum")


def matched_priors(conf_t):
    """N of the loss, at least 1: the matched priors of the batch; in distributed training the mean over the ranks.

    The mean, because DistributedDataParallel averages the gradients: together they are those of a single process that
    sees all ranks' pictures and divides by all their matched priors.
    """
    n = (conf_t > 0).sum().float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(n)
        return n.clamp(min=1) / torch.distributed.get_world_size()
    return n.clamp(min=1)
