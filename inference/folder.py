"""A folder of images: which of its files are images, and where the result of each is written."""

from pathlib import Path

from PIL import Image

from inference.video import CONTAINERS
from utils.errors import InputError
from utils.images import IMAGE_SUFFIXES, is_image

MARK = "_detections"
# Formats that a file without an image's suffix may have (Pillow's names); all of them can be read.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "GIF", "AVIF")


def list_images(folder):
    """List the images of a folder, without its subfolders and without results of earlier runs.

    Returns:
        (sorted list of image paths, sorted list of other files). A file without an image suffix (.gif, .avif, none) is
        an image if its content says so; hidden files and results are in neither list.

    Raises:
        InputError: there is no image.
    """
    files = [path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith(".")]
    files = sorted(path for path in files if not path.stem.endswith(MARK))
    images = [path for path in files if is_image(path) or holds_image(path)]
    if not images:
        raise InputError(f"{folder}: no image in this folder (found {len(files)} other files)")
    return images, sorted(set(files) - set(images))


def holds_image(path):
    """Return whether the content of a file is that of an image, whatever its name."""
    try:
        with Image.open(path, formats=_FORMATS):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def is_still_image(path):
    """Return whether a file is to be read as an image and not as a video, which a GIF is."""
    return is_image(path) or (path.is_file() and path.suffix.lower() != ".gif" and holds_image(path))


def result_paths(paths, output, folder=None):
    """Return the path under which the result of each image is written.

    Args:
        paths: the images.
        output: file or folder for the result of one image, folder for those of a folder; None is
            NAME_detections.SUFFIX beside each image.
        folder: the folder of the images, None for a single image.

    Raises:
        InputError: nothing can be written there, or an image would be overwritten.
    """
    into = Path(output) if output is not None else None
    if into is None:
        return [path.with_name(_result_name(path, MARK)) for path in paths]
    if folder is None and not into.is_dir():
        if not is_image(into):
            raise InputError(f"--output {output}: unsupported suffix; use one of {' '.join(IMAGE_SUFFIXES)}")
        return [into]
    if into.suffix.lower() in CONTAINERS or (is_image(into) and not into.is_dir()):
        raise InputError(f"--output {output}: name a folder, since each image of {folder} has its own result")
    if into.exists() and not into.is_dir():
        raise InputError(f"--output {output}: this is a file; name a folder")
    if into.exists() and into.samefile(folder or paths[0].parent):
        raise InputError(f"--output {output}: this folder holds the images; name another one")
    return [into / _result_name(path, "") for path in paths]


def make_folder(path):
    """Make the folder of the results, unless it is there. Raises InputError if that fails."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: can't be made a folder ({error.strerror})") from error


def _result_name(path, mark):
    """Results have a suffix that can be written; a.gif becomes a.gif.jpg, since there may be an a.jpg."""
    return f"{path.stem}{mark}{path.suffix}" if is_image(path) else f"{path.name}{mark}.jpg"
