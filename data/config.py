"""Configurations of SSD: feature maps, priors and schedule of each network, and constants of ssd.pytorch.

Priors belong to the configuration, not to the class count: a custom class list uses VOC's priors unless another
configuration is given.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

HOME = os.path.expanduser("~")  # noqa: PTH111 (scripts of ssd.pytorch expect a string)

# Mean of the training images. MEANS is BGR, the channel order of OpenCV and ssd.pytorch.
MEANS = (104, 117, 123)
RGB_MEANS = (123, 117, 104)

# BGR and alpha, for scripts that draw boxes.
COLORS = ((255, 0, 0, 128), (0, 255, 0, 128), (0, 0, 255, 128),
          (0, 255, 255, 128), (255, 0, 255, 128), (255, 255, 0, 128))  # fmt: skip


@dataclass(frozen=True)
class SSDConfig(Mapping):
    """Priors and training schedule of one network. Also a mapping, as in ssd.pytorch: cfg["min_dim"], dict(cfg).

    Box sizes and steps are in pixels of the network's input. Section 2.2 of the paper explains the box shapes.
    """

    name: str
    num_classes: int  # with the background
    lr_steps: tuple[int, ...]  # iterations at which the learning rate is divided by 10
    max_iter: int
    feature_maps: tuple[int, ...]  # side of each square map that predicts boxes
    min_dim: int  # side of the square input
    steps: tuple[int, ...]  # distance between the centers of neighboring priors
    min_sizes: tuple[float, ...]
    max_sizes: tuple[float, ...]
    aspect_ratios: tuple[tuple[int, ...], ...]  # a wide and a tall prior for each, besides two squares
    variance: tuple[float, float] = (0.1, 0.2)  # scales of the center and size offsets
    clip: bool = True  # clip priors (in center-size form) to [0, 1]

    def __getitem__(self, key):
        return vars(self)[key]

    def __iter__(self):
        return iter(vars(self))

    def __len__(self):
        return len(vars(self))

    @property
    def boxes_per_cell(self):
        """Number of priors in a cell of each feature map: two squares, and two boxes per aspect ratio."""
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
_SCHEDULE_ILSVRC = {"num_classes": 201, "lr_steps": (320_000, 400_000), "max_iter": 440_000}  # section 3.5


def _boxes(*sizes):
    """Return min_sizes and max_sizes: the max_size of a feature map is the min_size of the next one."""
    return {"min_sizes": sizes[:-1], "max_sizes": sizes[1:]}


_VOC_300 = _SHAPE_300 | _boxes(30, 60, 111, 162, 213, 264, 315)
_VOC_512 = _SHAPE_512 | _boxes(35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6)
_COCO_300 = _SHAPE_300 | _boxes(21, 45, 99, 153, 207, 261, 315)
_COCO_512 = _SHAPE_512 | _boxes(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72)

voc = SSDConfig(name="SSD300-VOC", **_VOC_300, **_SCHEDULE_VOC)
voc512 = SSDConfig(name="SSD512-VOC", **_VOC_512, **_SCHEDULE_VOC)
coco = SSDConfig(name="SSD300-COCO", **_COCO_300, **_SCHEDULE_COCO)
coco512 = SSDConfig(name="SSD512-COCO", **_COCO_512, **_SCHEDULE_COCO)
ilsvrc = SSDConfig(name="SSD300-ILSVRC", **_COCO_300, **_SCHEDULE_ILSVRC)
ilsvrc512 = SSDConfig(name="SSD512-ILSVRC", **_COCO_512, **_SCHEDULE_ILSVRC)
v2 = voc  # its name in the first version of ssd.pytorch

CONFIGS = {config.name: config for config in (voc, voc512, coco, coco512, ilsvrc, ilsvrc512)}


def get_config(dataset, size):
    """Return the SSDConfig for "VOC", "COCO" or "ILSVRC" and an input of 300 or 512 pixels.

    A folder counts as "VOC". Raises KeyError for another size.
    """
    return CONFIGS[f"SSD{size}-{dataset if dataset in ('COCO', 'ILSVRC') else 'VOC'}"]
