"""The training objective (section 2.2 of the paper, equations 1 to 3, and "Hard negative mining")."""

import torch
import torch.nn.functional as F
from torch import nn

from ..box_utils import VARIANCE, match


class MultiBoxLoss(nn.Module):
    """Localization loss (smooth L1) and confidence loss (softmax) over matched priors and mined negatives.

    Both are sums over the batch divided by N, the number of its matched priors (in distributed training, the mean over
    the ranks). If no prior is matched, both are 0, and backward() still works.

    The arguments are those of ssd.pytorch. `prior_for_matching`, `bkg_label`, `neg_mining`, `neg_overlap`,
    `encode_target` and `use_gpu` have no effect.

    Args:
        num_classes: number of classes, including the background.
        overlap_thresh: minimum overlap of a match, see `match_priors`.
        neg_pos: maximum ratio of negatives to positives in an image.
        variance: scales of the center and size offsets.
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
        self.use_gpu = use_gpu
        self.num_classes = num_classes
        self.threshold = overlap_thresh
        self.background_label = bkg_label
        self.encode_target = encode_target
        self.use_prior_for_matching = prior_for_matching
        self.do_neg_mining = neg_mining
        self.negpos_ratio = neg_pos
        self.neg_overlap = neg_overlap
        self.variance = tuple(variance)

    def forward(self, predictions, targets):
        """Compute the two losses, in float32 if the predictions are of half precision.

        Args:
            predictions: (loc [B, P, 4], conf [B, P, C], priors [P, 4] center-size), the network's output in train
                phase.
            targets: list of float [objects, 5] for each image: (x1, y1, x2, y2) as fractions, and the class from 0.
                [0, 5] for an image without objects.

        Returns:
            (loss_l, loss_c): localization and confidence loss, scalars.
        """
        loc, conf, priors = predictions
        loc_t, conf_t = self.match_targets(targets, priors[: loc.shape[1]].float())  # DataParallel repeats the priors
        loss_l, loss_c = self.sums(loc, conf, loc_t, conf_t)
        n = matched_priors(conf_t)
        return loss_l / n, loss_c / n

    def match_targets(self, targets, priors):
        """Match a batch: targets as in `forward`, priors [P, 4] -> loc_t [B, P, 4], conf_t int64 [B, P].

        Training does this in the DataLoader's workers, because on CUDA it synchronizes with the host.
        """
        loc_t = priors.new_zeros(len(targets), len(priors), 4)
        conf_t = torch.zeros(len(targets), len(priors), dtype=torch.int64, device=priors.device)
        for idx, target in enumerate(targets):
            truths = target.to(priors.device, priors.dtype)
            match(self.threshold, truths[:, :4], priors, self.variance, truths[:, 4], loc_t, conf_t, idx)
        return loc_t, conf_t

    def sums(self, loc, conf, loc_t, conf_t):
        """Return both losses before the division by N, in float32 or float64. Does not synchronize with the host.

        Args:
            loc, conf: predictions [B, P, 4] and [B, P, C].
            loc_t, conf_t: their targets from `match_targets`, [B, P, 4] and int64 [B, P].
        """
        loc, conf = (tensor.float() if tensor.dtype.itemsize < 4 else tensor for tensor in (loc, conf))
        positive = conf_t > 0  # [B, P]
        loss_l = F.smooth_l1_loss(loc, loc_t, reduction="none").sum(dim=-1)  # [B, P]
        loss_c = F.cross_entropy(conf.flatten(0, 1), conf_t.flatten(), reduction="none").view_as(conf_t)  # [B, P]
        selected = positive | self._hardest(loss_c.detach().masked_fill(positive, -1), positive)
        # Not a product with the mask, because 0 * infinity is NaN.
        return loss_l.masked_fill(~positive, 0).sum(), loss_c.masked_fill(~selected, 0).sum()

    def _hardest(self, loss_c, positive):
        """Select the priors of highest loss, `negpos_ratio` for each positive of the image: [B, P] -> bool [B, P]."""
        order = loss_c.argsort(dim=1, descending=True)
        count = self.negpos_ratio * positive.sum(dim=1, keepdim=True)
        mined = torch.arange(order.shape[1], device=order.device) < count
        return torch.zeros_like(positive).scatter_(1, order, mined)


def matched_priors(conf_t):
    """Return N of the loss: the number of matched priors, at least 1; with several ranks, the mean over them.

    DistributedDataParallel averages the gradients over the ranks. With the mean, the result is the gradient of a single
    process that computes the whole batch.
    """
    n = (conf_t > 0).sum().float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(n)
        return n.clamp(min=1) / torch.distributed.get_world_size()
    return n.clamp(min=1)
