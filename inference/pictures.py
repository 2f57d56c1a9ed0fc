"""Pictures in and out, by their path and whatever their name."""

from pathlib import Path

import cv2

from data.errors import InputError
from data.limits import check_regular, decode_picture
from inference.encoding import CONTAINERS, check_writable, grant_usual_permissions, temporary_beside

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".jp2"}
MARK = "_detections"


def is_picture(path):
    """Whether a name ends as a picture's does, in upper or lower case."""
    return Path(path).suffix.lower() in SUFFIXES


def read_picture(path):
    """Read a picture: uint8 RGB [H, W, 3], upright as its EXIF data says; grey, 16-bit and transparent ones too.

    Raises InputError, which names the file, where it can't be read.
    """
    try:
        check_regular(path)
        data = Path(path).read_bytes()  # OpenCV's own reading fails on Windows at names beyond ASCII
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    try:
        picture = decode_picture(data)
    except ValueError as error:
        raise InputError(f"{path} can't be read as a picture: {error}") from error
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture)


def write_picture(path, picture):
    """Write uint8 RGB [H, W, 3] in the format that the suffix names; whole or not at all. Raises InputError."""
    path = Path(path)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg") else []
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"{path} can't be written: take one of {', '.join(sorted(SUFFIXES))}")
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        grant_usual_permissions(temporary)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def list_pictures(folder):
    """Pictures in a folder (not in those below), by name, without our own output. Raises InputError where none is."""
    pictures = [path for path in Path(folder).iterdir() if path.is_file() and is_picture(path)]
    pictures = sorted(path for path in pictures if not path.stem.endswith(MARK) and not path.name.startswith("."))
    if not pictures:
        raise InputError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
    return pictures


def targets_for(paths, output, folder=None):
    """Where the output of each picture goes: a list of Paths.

    Args:
        paths: the pictures.
        output: what the user named: for one picture a file or a folder, for a folder a folder; None puts each beside
            its picture as NAME_detections.SUFFIX.
        folder: the folder that the pictures are those of, or None.
    Raises InputError where nothing can be written there, or the pictures themselves would be overwritten.
    """
    into = Path(output) if output is not None else None
    if into is None:
        targets = [path.with_name(f"{path.stem}{MARK}{path.suffix}") for path in paths]
    elif folder is None and not into.is_dir():
        if not is_picture(into):
            raise InputError(f"--output {output}: a picture is written as one of {', '.join(sorted(SUFFIXES))}")
        targets = [into]
    else:
        if not into.exists() and is_picture(into) or into.suffix.lower() in CONTAINERS:
            raise InputError(f"--output {output}: name a folder, as there is a picture for each in {folder}")
        try:
            into.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"--output {output}: no such folder can be made ({error.strerror})") from error
        if into.samefile(folder or paths[0].parent):
            raise InputError(f"--output {output}: the pictures themselves lie there; name another folder")
        targets = [into / path.name for path in paths]
    check_writable(targets[0])
    return targets
