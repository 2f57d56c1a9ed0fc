"""Default boxes (section 2.2 of the paper, "Choosing scales and aspect ratios for default boxes")."""

import math

import torch


class PriorBox:
    """The default boxes ("priors") of a configuration.

    In a cell the order is: the square of min_size, the square of sqrt(min_size * max_size), then for each aspect
    ratio the wide and the tall box of min_size's area. Cells run row by row, maps from fine to coarse.

    Args:
        cfg: an SSDConfig, or a dict with its keys (``feature_maps min_dim steps min_sizes max_sizes aspect_ratios
            variance clip``).

    Raises:
        ValueError: a variance isn't positive, or the lists differ in length.
    """

    def __init__(self, cfg):
        self.image_size = cfg["min_dim"]
        self.feature_maps = cfg["feature_maps"]
        self.steps = cfg["steps"]
        self.min_sizes = cfg["min_sizes"]
        self.max_sizes = cfg["max_sizes"]
        self.aspect_ratios = cfg["aspect_ratios"]
        self.clip = cfg["clip"]
        if any(v <= 0 for v in cfg["variance"]):
            raise ValueError(f"variances must be greater than 0, not {cfg['variance']}")
        lists = (self.feature_maps, self.steps, self.min_sizes, self.max_sizes, self.aspect_ratios)
        if len({len(values) for values in lists}) != 1:
            raise ValueError("feature_maps, steps, min_sizes, max_sizes and aspect_ratios must be of one length")

    def forward(self):
        """Compute the priors: float32 [priors, 4], (cx, cy, w, h) as fractions of the input."""
        maps = zip(self.feature_maps, self.steps, self.min_sizes, self.max_sizes, self.aspect_ratios, strict=True)
        priors = torch.cat([self._priors_of_map(*settings) for settings in maps])
        if self.clip:
            priors.clamp_(0, 1)
        return priors.float()

    __call__ = forward

    def _priors_of_map(self, side, step, min_size, max_size, ratios):
        """Priors of one square feature map: float64 [side * side * boxes, 4]."""
        centres = (torch.arange(side, dtype=torch.float64) + 0.5) * step / self.image_size
        cy, cx = torch.meshgrid(centres, centres, indexing="ij")

        square = min_size / self.image_size
        large_square = math.sqrt(min_size * max_size) / self.image_size
        shapes = [(square, square), (large_square, large_square)]
        for ratio in ratios:
            root = math.sqrt(ratio)
            shapes += [(square * root, square / root), (square / root, square * root)]
        shapes = torch.tensor(shapes, dtype=torch.float64)  # [boxes, 2]

        centres = torch.stack([cx, cy], dim=-1).reshape(-1, 1, 2).expand(-1, len(shapes), -1)
        shapes = shapes.expand(side * side, -1, -1)
        return torch.cat([centres, shapes], dim=-1).reshape(-1, 4)
