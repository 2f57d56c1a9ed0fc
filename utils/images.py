"""Read and write images. Limits protect against damaged and hostile files."""

import io
import os
from pathlib import Path

import cv2
import numpy as np

from utils import PIXELS_VARIABLE
from utils.errors import InputError
from utils.files import check_regular, whole_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".jp2")  # read and written
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG, _JPEG_SCAN = b"\xff\xd8", b"\xff\xda"


def read_image(path):
    """Read an image as uint8 RGB [H, W, 3], rotated as its EXIF data says; grayscale and alpha are converted.

    Raises InputError if the file is missing, damaged, too large, or not an image.
    """
    image = read_bgr(path)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_bgr(path):
    """Read an image as uint8 BGR [H, W, 3], OpenCV's and ssd.pytorch's channel order; otherwise as `read_image`."""
    try:
        check_regular(path)
        data = Path(path).read_bytes()  # cv2.imread fails on non-Latin paths on Windows
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    try:
        return decode_image(data)
    except ValueError as error:
        raise InputError(f"{path}: not a readable image ({error}); repair or remove it") from error


def decode_image(data):
    """Decode the bytes of an image file to uint8 BGR [H, W, 3], rotated as its EXIF data says.

    Raises:
        ValueError: the data is damaged, too large, or not an image; the message is a phrase.
    """
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(_PNG) and not _is_complete_png(data):
        raise ValueError("damaged: truncated, or a chunk is larger than the file")
    # Each scan of a progressive JPEG is decoded for all pixels; usually, there are 10. In the video that some phones
    # append, the marker occurs by chance, once in 64 kB.
    most = 64 + len(data) // 2**15
    if data.startswith(_JPEG) and (scans := data.count(_JPEG_SCAN)) > most:
        raise ValueError(f"it has {scans} scans (at most {most} are allowed)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in error.err:
            raise ValueError(
                f"it has more than {os.environ[PIXELS_VARIABLE]} pixels; if you trust it, "
                f"set the environment variable {PIXELS_VARIABLE} to a higher number"
            ) from error
        image = None  # damaged
    if image is None:
        image = _decode_with_pillow(data)
    if image is None:
        raise ValueError("damaged, or not an image")
    return image


def _decode_with_pillow(data):
    """Decode a format that this build of OpenCV lacks, such as GIF or AVIF; None if Pillow can't decode it either."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in ("JPEG", "PNG") or image.width * image.height > int(os.environ[PIXELS_VARIABLE]):
                return None  # OpenCV has rejected it, or it is too large
            rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # a damaged file makes Pillow fail in many ways
        return None
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


def _is_complete_png(data):
    """Return True if a PNG contains all chunks up to IEND. OpenCV would allocate a chunk's stated size, up to 4 GB."""
    position = len(_PNG)
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        if kind == b"IEND":
            break
    return position <= len(data)


def is_image(path):
    """Return whether a file name has an image suffix, in upper or lower case."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def write_image(path, image):
    """Write uint8 RGB [H, W, 3] in the format of the suffix.

    Raises InputError if the file can't be written, or the suffix is not an image's.
    """
    path = Path(path)
    if not is_image(path):
        raise InputError(f"{path}: unsupported image suffix; use one of {' '.join(IMAGE_SUFFIXES)}")
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg") else []
    try:
        written, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    except cv2.error:
        written = False
    if not written:
        height, width = image.shape[:2]
        raise InputError(f"{path}: can't be written with {width}x{height} pixels; choose a name with .png")
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
