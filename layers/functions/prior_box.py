"""Default boxes (section 2.2 of the paper, "Choosing scales and aspect ratios for default boxes")."""

import math

import torch


class PriorBox:
    """The default boxes ("priors") of a configuration.

    Order in a cell: squares of side min_size and sqrt(min_size * max_size), then for each aspect ratio a wide and a
    tall box with the area of the first square. Cells are ordered row by row, feature maps from fine to coarse.

    Args:
        cfg: an SSDConfig, or a dict with its keys (``min_dim feature_maps steps min_sizes max_sizes aspect_ratios
            variance clip name``).

    Raises:
        ValueError: a variance is not positive, or the lists differ in length.
    """

    def __init__(self, cfg):
        self.image_size = cfg["min_dim"]
        self.num_priors = len(cfg["aspect_ratios"])  # number of feature maps, as named in ssd.pytorch
        self.variance = cfg["variance"]
        self.feature_maps = cfg["feature_maps"]
        self.steps = cfg["steps"]
        self.min_sizes = cfg["min_sizes"]
        self.max_sizes = cfg["max_sizes"]
        self.aspect_ratios = cfg["aspect_ratios"]
        self.clip = cfg["clip"]
        self.version = cfg["name"]
        if any(v <= 0 for v in self.variance):
            raise ValueError(f"variances must be greater than 0, not {self.variance}")
        lists = (self.feature_maps, self.steps, self.min_sizes, self.max_sizes, self.aspect_ratios)
        if len({len(values) for values in lists}) != 1:
            raise ValueError("feature_maps, steps, min_sizes, max_sizes and aspect_ratios must have the same length")

    def forward(self):
        """Compute the priors: float32 [priors, 4], (cx, cy, w, h) as fractions of the input."""
        maps = zip(self.feature_maps, self.steps, self.min_sizes, self.max_sizes, self.aspect_ratios, strict=True)
        priors = torch.cat([self._priors_of_map(*settings) for settings in maps])
        return (priors.clamp(0, 1) if self.clip else priors).float()

    __call__ = forward

    def _priors_of_map(self, side, step, min_size, max_size, ratios):
        """Priors of one square feature map: float64 [side * side * boxes, 4]."""
        centers = (torch.arange(side, dtype=torch.float64) + 0.5) * step / self.image_size
        cy, cx = torch.meshgrid(centers, centers, indexing="ij")
        centers = torch.stack([cx, cy], dim=-1).view(-1, 1, 2)  # [cells, 1, 2]

        shapes = [(min_size, min_size), (math.sqrt(min_size * max_size),) * 2]
        for ratio in ratios:
            long, short = min_size * math.sqrt(ratio), min_size / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        shapes = torch.tensor(shapes, dtype=torch.float64) / self.image_size  # [boxes, 2]

        cells = (len(centers), len(shapes), 2)
        return torch.cat([centers.expand(cells), shapes.expand(cells)], dim=-1).view(-1, 4)
