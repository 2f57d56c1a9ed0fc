"""What goes into the network: configurations and class names, data sets, preprocessing and augmentation."""

from utils import images  # noqa: F401 (before OpenCV, whose limits it sets)
from utils.augmentations import SSDAugmentation
from utils.errors import InputError

from .coco import COCO_CLASSES, COCO_ROOT, COCOAnnotationTransform, COCODetection
from .config import CONFIGS, HOME, MEANS, RGB_MEANS, SSDConfig, coco, coco512, voc, voc512
from .transforms import BaseTransform, detection_collate
from .voc0712 import VOC_CLASSES, VOC_ROOT, VOCAnnotationTransform, VOCDetection

__all__ = [
    "COCO_CLASSES",
    "COCO_ROOT",
    "CONFIGS",
    "HOME",
    "MEANS",
    "RGB_MEANS",
    "VOC_CLASSES",
    "VOC_ROOT",
    "BaseTransform",
    "COCOAnnotationTransform",
    "COCODetection",
    "InputError",
    "SSDAugmentation",
    "SSDConfig",
    "VOCAnnotationTransform",
    "VOCDetection",
    "coco",
    "coco512",
    "detection_collate",
    "voc",
    "voc512",
]
