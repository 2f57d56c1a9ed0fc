"""Configurations of SSD: feature maps, default boxes and schedule of each network, and constants of the lineage.

The priors belong to the configuration and never to the class count: a custom class list uses VOC's priors
unless another configuration is asked for.
"""

from dataclasses import dataclass, fields
from pathlib import Path

HOME = str(Path.home())

# Mean of the training pictures. MEANS is in BGR order, as OpenCV reads pictures and as the lineage's scripts pass it.
MEANS = (104, 117, 123)
RGB_MEANS = (123, 117, 104)


@dataclass(frozen=True)
class SSDConfig:
    """One network's default boxes and training schedule; also answers ``cfg["min_dim"]`` as the lineage's dicts do.

    Box sizes and steps are in pixels of the network's input. See section 2.2 of the paper for the box shapes.
    """

    name: str
    num_classes: int  # with the background
    lr_steps: tuple[int, ...]  # iterations at which the learning rate falls to a tenth
    max_iter: int
    feature_maps: tuple[int, ...]  # side of each square map that predicts boxes
    min_dim: int  # side of the square input
    steps: tuple[int, ...]  # distance of neighbouring prior centres
    min_sizes: tuple[float, ...]
    max_sizes: tuple[float, ...]
    aspect_ratios: tuple[tuple[int, ...], ...]  # each also inverted; 1 is always there, twice
    variance: tuple[float, float] = (0.1, 0.2)  # scales of the centre and size offsets
    clip: bool = True  # priors (in centre-size form) cut to [0, 1]

    def __getitem__(self, key):
        if key not in {field.name for field in fields(self)}:
            raise KeyError(key)
        return getattr(self, key)

    @property
    def boxes_per_cell(self):
        """Number of priors in a cell of each feature map: two squares and two boxes a ratio."""
        return tuple(2 + 2 * len(ratios) for ratios in self.aspect_ratios)

    @property
    def num_priors(self):
        return sum(side**2 * boxes for side, boxes in zip(self.feature_maps, self.boxes_per_cell, strict=True))


_SHAPE_300 = {
    "feature_maps": (38, 19, 10, 5, 3, 1),
    "min_dim": 300,
    "steps": (8, 16, 32, 64, 100, 300),
    "aspect_ratios": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
}
_SHAPE_512 = {
    "feature_maps": (64, 32, 16, 8, 4, 2, 1),
    "min_dim": 512,
    "steps": (8, 16, 32, 64, 128, 256, 512),
    "aspect_ratios": ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
}
_SCHEDULE_VOC = {"num_classes": 21, "lr_steps": (80_000, 100_000), "max_iter": 120_000}
_SCHEDULE_COCO = {"num_classes": 81, "lr_steps": (280_000, 360_000), "max_iter": 400_000}

voc = SSDConfig(
    name="SSD300-VOC",
    min_sizes=(30, 60, 111, 162, 213, 264),
    max_sizes=(60, 111, 162, 213, 264, 315),
    **_SHAPE_300,
    **_SCHEDULE_VOC,
)
coco = SSDConfig(
    name="SSD300-COCO",
    min_sizes=(21, 45, 99, 153, 207, 261),
    max_sizes=(45, 99, 153, 207, 261, 315),
    **_SHAPE_300,
    **_SCHEDULE_COCO,
)
voc512 = SSDConfig(
    name="SSD512-VOC",
    min_sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8),
    max_sizes=(76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
    **_SHAPE_512,
    **_SCHEDULE_VOC,
)
coco512 = SSDConfig(
    name="SSD512-COCO",
    min_sizes=(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8),
    max_sizes=(51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
    **_SHAPE_512,
    **_SCHEDULE_COCO,
)

CONFIGS = {config.name: config for config in (voc, coco, voc512, coco512)}


def get_config(dataset, size):
    return {("VOC", 300): voc, ("VOC", 512): voc512, ("COCO", 300): coco, ("COCO", 512): coco512}[dataset if dataset=="COCO" else "VOC", size]
