"""Inputs of a command line (files, folders, globs, cameras, addresses, stdin) and the paths of their results."""

import glob
import itertools
import json
import os
import re
import shutil
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from PIL import Image

from utils.download import Remote, fetch
from utils.errors import InputError, count
from utils.files import cache_folder
from utils.images import IMAGE_SUFFIXES, is_image

CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv")  # suffixes of videos that can be written (H.264)
MARK = "_detections"
CROPS_MARK = ".crops"  # a file in each folder of --crops
_VIDEO_SUFFIXES = (*CONTAINERS, ".avi", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".gif", ".3gp", ".mts")
# Formats that a file without an image's suffix may have (Pillow's names); all of them can be read.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "GIF", "AVIF")


@dataclass(frozen=True)
class Input:
    """One image, video, or live source."""

    kind: str  # "image", "video" or "live" (a camera or a network stream)
    source: Path | int | str  # Path of a file, number of a camera, or address of a stream
    name: str  # in results and messages
    folder: Path | None = None  # the input folder that it was found in, if any
    target: Path | None = None  # of its result; None until `with_targets`


@contextmanager
def open_inputs(names, recursive=False):
    """Find the inputs that `names` stand for. Files from the web and stdin are in a temporary folder until the end.

    Args:
        names: files, folders of images, globs, numbers of cameras, http(s) and rtsp addresses, "-" for stdin.
        recursive: also search the subfolders of folders; "**" in a glob does so anyway.

    Yields:
        (list of Input, list of InputError): one error for each name without inputs.
    """
    inputs, errors = [], []
    with TemporaryDirectory() as temporary:
        for number, name in enumerate(names):
            try:
                inputs += _find(name, recursive, Path(temporary) / str(number))
            except InputError as error:
                errors.append(error)
            except OSError as error:  # of pathlib, for a name that is too long or not accessible
                errors.append(InputError(f"{name}: can't be read ({error.strerror}); choose another one"))
        yield inputs, errors


def _find(name, recursive, temporary):
    """Return the Inputs of one name. Raises InputError if there are none."""
    if not name:
        raise InputError("INPUT is empty; name a video, an image, a folder or the number of a camera")
    path = Path(name)
    if name == "-":
        return [_from_stdin(temporary)]
    if "://" in name:
        return [_from_web(name, temporary)]
    if os.path.lexists(name):
        return list_folder(path, recursive) if path.is_dir() else [_file(path)]
    if name.isdecimal():
        return [Input("live", int(name), f"camera {name}")]
    if glob.has_magic(name):
        found = map(Path, glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute patterns)
        if not (found := _without_results(found, "**" in name)):
            raise InputError(f"{name}: no file matches; check the pattern")
        return [_file(path) for path in found]
    raise InputError(f"{name}: no such file or folder; check the name")


def _file(path, name=None):
    """Return the Input of a file: an image by its suffix or content, else a video. A GIF is read as a video."""
    still = is_image(path) or (path.is_file() and path.suffix.lower() != ".gif" and _holds_image(path))
    return Input("image" if still else "video", path, name or str(path))


def _from_stdin(temporary):
    """Copy stdin to a file: most video formats can't be read without seeking."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("-: nothing is piped into stdin; name a file, or pipe one in")
    temporary.mkdir()
    path = temporary / "stdin"
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise InputError(f"-: stdin can't be copied to {temporary} ({error.strerror})") from error
    return _file(path, "stdin")


def _from_web(address, temporary):
    """Download a file. Any other address is a stream."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise InputError(f"{address}: invalid address ({error}); check it") from error
    name = Path(unquote(parts.path)).name
    suffix = Path(name).suffix.lower()
    if parts.scheme not in ("http", "https") or suffix not in (*_VIDEO_SUFFIXES, *IMAGE_SUFFIXES):
        return Input("live", address, address)
    path = fetch(Remote(re.sub(r"[^\w.-]", "_", name), address), temporary)
    return _file(path, address)


def list_folder(folder, recursive=False):
    """List the images of a folder, and with `recursive` the images and videos of it and its subfolders.

    A file without an image suffix (.gif, .avif, none) is an image if its content says so. Hidden files, results of
    earlier runs and files of other kinds are left out.

    Returns:
        Inputs, sorted by path.

    Raises:
        InputError: there are no inputs.
    """
    paths = folder.rglob("*") if recursive else folder.iterdir()
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = _without_results(paths, recursive)
    found = [Input("image", path, str(path), folder) for path in files if is_image(path) or _holds_image(path)]
    if recursive:
        images = {image.source for image in found}
        videos = [path for path in files if path not in images and path.suffix.lower() in _VIDEO_SUFFIXES]
        found += [Input("video", path, str(path), folder) for path in videos]
        found.sort(key=lambda one: one.source)
    if not found:
        raise InputError(
            f"{folder}: no image in this folder (found {count(len(files), 'other file')}); name another folder"
        )
    return found


def _without_results(paths, recursive):
    """Return the sorted files among paths, without those that this program has written."""
    files = sorted(path for path in paths if path.is_file() and not path.stem.endswith(MARK))
    if recursive:  # folders of results and crops may be among the subfolders
        ours, folders = Written(), {path.parent for path in files}
        crops = {folder for folder in folders if (folder.parent / CROPS_MARK).exists()}
        files = [path for path in files if path not in ours and path.parent not in crops]
    return files


def _holds_image(path):
    """Return True if the content of a file is an image. The name is ignored."""
    try:
        with Image.open(path, formats=_FORMATS):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def with_targets(inputs, output=None, several=False):
    """Return the inputs with the paths of their results.

    A single video is written to `output`, or to output.mp4. A single image is written to `output`, or to
    NAME_detections.SUFFIX beside it. For other inputs, and if it has no suffix, `output` is a folder. If it is None,
    each result is written beside its input; results of live sources, web files and stdin are written to the current
    folder.

    Args:
        inputs: list of Input.
        output: path, or None.
        several: several inputs were named, even if only one was found.

    Raises:
        InputError: `output` has an unsupported suffix, or is a file but must be a folder.
    """
    results = {_beside(one) for one in inputs}
    inputs = [one for one in inputs if one.source not in results]  # photos/*.jpg names those of the first run, too
    alone = len(inputs) == 1 and inputs[0].folder is None and not several
    into = Path(output) if output is not None else None
    if alone and not (into and (into.is_dir() or not into.suffix)):
        (one,) = inputs
        if into is None:
            into = Path("output.mp4") if one.kind != "image" else _beside(one)
        suffixes = IMAGE_SUFFIXES if one.kind == "image" else CONTAINERS
        if into.suffix.lower() not in suffixes:
            kind = "an image" if one.kind == "image" else "a video"
            raise InputError(f"--output {into}: {kind} is written as {', '.join(suffixes)}; choose such a name")
        return [replace(one, target=into)]
    if into and into.is_file():
        raise InputError(f"--output {output}: this is a file; name a folder")
    taken, done = set(), []
    for one in inputs:
        below = one.source.relative_to(one.folder).parent if one.folder else Path()
        for number in itertools.count(1):
            mark = f"_{number}" if number > 1 else ""
            target = into / below / _result_name(one, mark) if into else _beside(one, mark)
            if target not in taken:
                break
        taken.add(target)
        done.append(replace(one, target=target))
    return done


def _beside(one, mark=""):
    """Return the path of an input's result beside it."""
    is_own = isinstance(one.source, Path) and str(one.source) == one.name
    return (one.source.parent if is_own else Path()) / _result_name(one, mark + MARK)


def _result_name(one, mark):
    """Return a file name with a suffix that can be written; a.gif gives a.gif.jpg, since there may be an a.jpg."""
    suffixes, default = (IMAGE_SUFFIXES, ".jpg") if one.kind == "image" else (CONTAINERS, ".mp4")
    path = one.source if isinstance(one.source, Path) else Path(re.sub(r"[^\w.-]+", "_", one.name))
    if path.suffix.lower() in suffixes:
        return f"{path.stem}{mark}{path.suffix}"
    return f"{path.name}{mark}{default}"


class Written:
    """The list of files that this program has written. Without --overwrite, it overwrites only these.

    The list is in the user's cache folder, with sizes and times: a file that was changed later is not overwritten.
    Without a cache folder, the list is empty.
    """

    def __init__(self):
        self._path = cache_folder() / "written.jsonl"
        self._lines = set()
        with suppress(OSError, ValueError):
            self._lines.update(self._path.read_text(encoding="utf-8").splitlines())

    def __contains__(self, path):
        return _state_of(path) in self._lines

    @contextmanager
    def watch(self, paths):
        """A context that lists the files of `paths` that are written in it, even if it raises."""
        before = {path: os.path.isfile(path) and _state_of(path) for path in paths}  # noqa: PTH113 (names too long)
        try:
            yield
        finally:
            states = [(_state_of(path), before[path]) for path in before if os.path.isfile(path)]  # noqa: PTH113
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.writelines(state + "\n" for state, earlier in states if state != earlier)


def _state_of(path):
    info = Path(path).stat()
    return json.dumps([os.path.realpath(path), info.st_size, info.st_mtime_ns])
