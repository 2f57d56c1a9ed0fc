"""What any research repository needs: errors, files, images, downloads, devices; and the lineage's augmentations."""

import os

# The largest image in pixels: a decoder needs up to 12 bytes per pixel, so 2 GB suffice. OpenCV reads the variable
# once, when it is imported; packages that import OpenCV import `utils` first.
MAX_PIXELS = 2**27
PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
os.environ.setdefault(PIXELS_VARIABLE, str(MAX_PIXELS))
