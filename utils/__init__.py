"""Errors, files, images, downloads and devices; and SSD's data augmentation."""

import os

# Maximum number of pixels of an image: decoders need up to 12 bytes per pixel, which stays below 2 GB. OpenCV reads the
# variable once, when it is imported, so packages that import OpenCV import `utils` first.
MAX_PIXELS = 2**27
PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
os.environ.setdefault(PIXELS_VARIABLE, str(MAX_PIXELS))


def __getattr__(name):
    if name == "SSDAugmentation":  # as in ssd.pytorch; imported only if needed
        from utils.augmentations import SSDAugmentation

        return SSDAugmentation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
