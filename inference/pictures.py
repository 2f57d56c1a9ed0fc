"""Pictures in and out, by their path and whatever their name."""

from pathlib import Path

from inference.encoding import CONTAINERS, check_writable
from utils.errors import InputError
from utils.images import IMAGE_SUFFIXES as SUFFIXES
from utils.images import is_image as is_picture

MARK = "_detections"


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
