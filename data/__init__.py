"""Configurations and class names, data sets, preprocessing and augmentation."""

import os

from utils import images  # noqa: F401 (before OpenCV: `utils` sets its limits)

import cv2  # isort: skip
import numpy as np
import torch

from utils.augmentations import SSDAugmentation

from .coco import COCO_CLASSES, COCO_ROOT, COCOAnnotationTransform, COCODetection, get_label_map
from .config import COLORS, HOME, MEANS, RGB_MEANS, coco, coco512, ilsvrc, ilsvrc512, v2, voc, voc512
from .ilsvrc import ILSVRC_CLASSES, ILSVRC_ROOT, ILSVRCDetection
from .transforms import BaseTransform, base_transform, detection_collate
from .voc0712 import VOC_CLASSES, VOC_ROOT, VOCAnnotationTransform, VOCDetection

# Names in the first version of ssd.pytorch.
AnnotationTransform = VOCAnnotationTransform
VOCroot, COCOroot = VOC_ROOT, COCO_ROOT

# cv2, np, os and torch are included, because scripts of ssd.pytorch get them from `from data import *`.
__all__ = [
    "COCO_CLASSES", "COCO_ROOT", "COLORS", "HOME", "ILSVRC_CLASSES", "ILSVRC_ROOT", "MEANS", "RGB_MEANS", "VOC_CLASSES",
    "VOC_ROOT", "AnnotationTransform", "BaseTransform", "COCOAnnotationTransform", "COCODetection", "COCOroot",
    "ILSVRCDetection", "SSDAugmentation", "VOCAnnotationTransform", "VOCDetection", "VOCroot", "base_transform", "coco",
    "coco512", "cv2", "detection_collate", "get_label_map", "ilsvrc", "ilsvrc512", "np", "os", "torch", "v2", "voc",
    "voc512",
]  # fmt: skip
