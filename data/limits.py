"""Pictures decoded within limits: whoever made the file may be careless, or hostile."""

import os
import stat

# Of a picture: a decoder needs up to twelve bytes a pixel, so that 2 GB suffice. OpenCV's own limit is eight times
# that; it reads the variable once, when it is imported, so that this module has to be imported before.
PIXELS = 2**27
PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
os.environ.setdefault(PIXELS_VARIABLE, str(PIXELS))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"
JPEG, JPEG_SCAN = b"\xff\xd8", b"\xff\xda"
# Of a JPEG: a progressive one usually has ten, and each goes over all the pixels, however few bytes it takes.
MOST_SCANS = 64


def decode_picture(data):
    """Bytes of a picture file as uint8 BGR [H, W, 3], upright as its EXIF data says; grey and transparent ones, too.

    Raises ValueError, in words, where they are damaged, no picture, or claim more than they hold.
    """
    if not data:
        raise ValueError("it is empty")
    if data.startswith(PNG) and not _holds_its_chunks(data):
        raise ValueError("damaged: it is cut off, or claims more than it holds")
    if data.startswith(JPEG) and (scans := data.count(JPEG_SCAN)) > MOST_SCANS:
        raise ValueError(
            f"it holds {scans} scans, each of which takes time, and {MOST_SCANS} are allowed: save it anew"
        )
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in error.err:
            raise ValueError(
                f"it claims a size above {os.environ[PIXELS_VARIABLE]} pixels; if you trust it, "
                f"set the environment variable {PIXELS_VARIABLE} to more"
            ) from error
        picture = None  # damaged in a way that OpenCV trips over
    if picture is None:
        raise ValueError("damaged, or no picture")
    return picture


def _holds_its_chunks(data):
    """Whether a PNG holds its chunks up to IEND; OpenCV makes room for what a chunk claims, up to 4 GB, unseen."""
    place = len(PNG)
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if kind == b"IEND":
            break
    return place <= len(data)


def check_regular(path):
    """Raise OSError unless `path` is a regular file: a device or a pipe may have no end, or no beginning."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 (path may be a str)
    except ValueError as error:  # a NUL in the name
        raise OSError(22, "no possible name of a file", str(path)) from error
    if not regular:
        raise OSError(22, "not a regular file", str(path))
