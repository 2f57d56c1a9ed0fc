"""Limits on what a file may make us do: whoever wrote it may be careless, or hostile."""

import os
import stat

# Of a picture: a decoder needs up to twelve bytes a pixel, so that 2 GB suffice. OpenCV's own limit is eight times
# that; it reads the variable once, when it is imported, so that this module has to be imported before.
PIXELS = 2**27
PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
os.environ.setdefault(PIXELS_VARIABLE, str(PIXELS))


def why_undecoded(error):
    """What a cv2.error of imdecode means, in words; a picture above the limit is told how to lift it."""
    if "CV_IO_MAX_IMAGE" in error.err:
        return (
            f"it claims a size above {os.environ[PIXELS_VARIABLE]} pixels; if you trust it, "
            f"set the environment variable {PIXELS_VARIABLE} to more"
        )
    return "damaged, or no picture"


def check_regular(path):
    """Raise OSError unless `path` is a regular file: a device or a pipe may have no end, or no beginning."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 (path may be a str)
    except ValueError as error:  # a NUL in the name
        raise OSError(22, "no possible name of a file", str(path)) from error
    if not regular:
        raise OSError(22, "not a regular file", str(path))
