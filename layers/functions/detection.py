"""From the network's offsets and class scores to final boxes: decoding and non-maximum suppression."""

import torch
from torch import nn
from torchvision.ops import nms

from ..box_utils import VARIANCE, decode

FAR = 100.0  # image sides; on CUDA, boxes are clipped to this for NMS, since an infinite box would affect all others


class Detect(nn.Module):
    """Decode the boxes and run non-maximum suppression (NMS) for each class (section 2 of the paper).

    By default, NMS gets the 200 best boxes of each class, and all boxes that it keeps are returned. This gave 77.43.
    The paper's code gives NMS 400 per class and keeps the 200 best of all classes: ``nms_top_k=400, keep_top_k=200``.

    Args:
        num_classes, bkg_label: number of classes including the background; the background's index, its rows are 0.
        top_k: rows of the result for each class.
        conf_thresh: scores must be greater than this.
        nms_thresh: a box is dropped if its IoU with a kept box of its class is greater; ValueError outside of (0, 1].
        variance: scales of the center and size offsets.
        nms_top_k: maximum number of boxes per class before NMS; None: `top_k`.
        keep_top_k: maximum number of boxes per image over all classes; None: no limit.
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
        self.num_classes, self.background_label = num_classes, bkg_label
        self.top_k, self.nms_top_k, self.keep_top_k = top_k, nms_top_k or top_k, keep_top_k
        self.conf_thresh, self.nms_thresh, self.variance = conf_thresh, nms_thresh, tuple(variance)

    @torch.no_grad()
    def forward(self, loc_data, conf_data, prior_data):
        """Offsets [B, P, 4], probabilities [B, P, C] (or [B * P, C]), center-size priors [P, 4] -> [B, C, top_k, 5].

        The float32 rows are (score, x1, y1, x2, y2), corners as fractions of the image, best first, padded with zeros.
        """
        batch, classes = len(loc_data), self.num_classes
        if batch == 0:
            return loc_data.new_zeros(0, classes, self.top_k, 5, dtype=torch.float32)
        scores = conf_data.float().reshape(batch, len(prior_data), classes).nan_to_num(nan=-1.0)
        scores[..., self.background_label] = -1.0
        scores = scores.transpose(1, 2).contiguous().flatten(0, 1)  # [B * C, P]
        rows, priors = (torch.arange(length, device=scores.device) for length in scores.shape)
        if not scores.is_cuda:  # classes and priors with candidates; on CUDA, counting them would synchronize
            rows, priors = ((scores.amax(dim=d) > self.conf_thresh).nonzero()[:, 0] for d in (1, 0))
            scores = scores.index_select(0, rows).index_select(1, priors)
        # The best of each row, sorted by prior: NMS keeps this order for equal scores.
        best = scores.topk(min(self.nms_top_k, scores.shape[1]), sorted=False).indices.sort(dim=1).values
        best_scores = scores.gather(1, best)
        enters = (best_scores > self.conf_thresh).nonzero(as_tuple=True)
        score, row, prior = best_scores[enters], rows[enters[0]], priors[best[enters]]
        boxes = decode(loc_data[row // classes, prior].float(), prior_data[prior].float(), self.variance)

        kept = self._nms_of_rows(boxes, score, row)
        row = row[kept]
        column = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        out = boxes.new_zeros(batch * classes, self.top_k + 1, 5)  # the extra column receives boxes beyond top_k
        out[row, column.clamp(max=self.top_k)] = torch.cat([score[kept, None], boxes[kept]], dim=1)
        out = out[:, : self.top_k].reshape(batch, -1, 5)
        if self.keep_top_k is not None:
            others = out[..., 0].argsort(dim=1, descending=True, stable=True)[:, self.keep_top_k :]
            out.scatter_(1, others[..., None].expand(-1, -1, 5), 0.0)
        return out.view(batch, classes, self.top_k, 5)

    def _nms_of_rows(self, boxes, score, row):
        """Run NMS within each row; return the indices of the kept boxes by row, best first."""
        if boxes.is_cuda:  # one NMS for all rows, which are shifted apart, in float64
            finite = boxes.double().nan_to_num(nan=FAR).clamp(-FAR, FAR)
            kept = nms(finite + 4 * FAR * row[:, None], score.double(), self.nms_thresh)
            return kept[row[kept].argsort(stable=True)]
        parts = torch.arange(len(row), device=row.device).split(row.unique_consecutive(return_counts=True)[1].tolist())
        return torch.cat([row[:0], *(part[nms(boxes[part], score[part], self.nms_thresh)] for part in parts)])
