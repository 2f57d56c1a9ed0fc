"""What the files of a data set hold: read once, and remembered in the user's cache folder until a file changes."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from data.cache import cache_folder
from data.voc0712 import Annotation, read_annotation
from utils.errors import InputError
from utils.images import read_bgr

# Another OpenCV may read other files, so that what one version could read says nothing about the next.
FORMAT = f"ssd-check-1, OpenCV {cv2.__version__}"


def read_size(path):
    """Decode a picture: its [width, height] in pixels. Raises InputError."""
    height, width = read_bgr(path).shape[:2]
    return [width, height]


def read_objects(path):
    """A VOC annotation as JSON holds it: [width, height, [[xmin, ymin, xmax, ymax, name, difficult], ...]].

    Raises InputError.
    """
    annotation = read_annotation(path)
    rows = zip(annotation.boxes.tolist(), annotation.names, annotation.difficult.tolist(), strict=True)
    return [annotation.width, annotation.height, [[*box, name, difficult] for box, name, difficult in rows]]


def as_annotation(value):
    """The Annotation of what read_objects gives."""
    width, height, rows = value
    return Annotation(
        boxes=np.array([row[:4] for row in rows], dtype=np.float32).reshape(-1, 4),
        names=tuple(row[4] for row in rows),
        difficult=np.array([row[5] for row in rows], dtype=bool),
        width=width,
        height=height,
    )


def read_files(readers, root, name, threads, say):
    """What each file holds; only those are read that are new or changed since the last time.

    In a job of several processes each reads its share of the files, and all of them get everything.

    Args:
        readers: {path: read_size or read_objects}.
        root: folder that the files lie in.
        name: of this choice of files; with the root it is what the memory of the last time goes by.
        threads: that read.
        say: prints one line.

    Returns:
        {path: what its reader gives, or the InputError that it raises}.
    """
    memory = Memory(root, name)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = list(readers.items())[rank::world]
    entries = [memory.recall(path, reader) for path, reader in share]
    unknown = [place for place, entry in enumerate(entries) if entry is None]
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="check")
    try:
        read = pool.map(lambda place: _read(*share[place]), unknown)
        bar = tqdm(read, "checking the data set", len(unknown), unit="file", delay=1, disable=True if rank else None)
        for place, entry in zip(unknown, bar, strict=True):
            entries[place] = entry
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C shouldn't wait for a hundred thousand files
    entries = dict(zip(readers, _gather(entries, world, len(readers)), strict=True))
    if rank == 0:
        memory.keep(entries, say)
    return {path: value for path, (_, value) in entries.items()}


def _gather(entries, world, total):
    """The entries of all ranks in the order of the files, of which rank r has number r, r + world, ..."""
    if world == 1:
        return entries
    shares, gathered = [None] * world, [None] * total
    dist.all_gather_object(shares, entries)
    for other, share in enumerate(shares):
        gathered[other::world] = share
    return gathered


def _read(path, reader):
    """[stamp, value] of a file; the stamp is taken first, so that a change in between is noticed the next time."""
    stamp = _stamp(path)
    try:
        return [stamp, reader(path)]
    except InputError as error:
        return [stamp, error]


def _stamp(path):
    """[size, time of the last change] of a file, by which a change is noticed; None where it isn't there."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


class Memory:
    """What was read the last time: a JSON file in the user's cache folder. One that can't be used is no memory.

    Args:
        root: folder of the data set.
        name: of a choice of files in it; each has a memory of its own.
    """

    def __init__(self, root, name):
        self.prefix = str(root)
        digest = hashlib.sha256(f"{Path(root).resolve()} {name}".encode("utf-8", "surrogateescape")).hexdigest()
        folder = cache_folder()
        self.path = folder / f"check-{digest[:20]}.json" if folder else None
        self.entries = self._load()

    def _load(self):
        try:
            contents = json.loads(self.path.read_text(encoding="utf-8"))
            return dict(contents["files"]) if contents["format"] == FORMAT else {}
        except (AttributeError, OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}

    def recall(self, path, reader):
        """[stamp, value] of a file, or None: not known, changed since, or not what its reader gives."""
        try:
            stamp, value = self.entries[path.removeprefix(self.prefix)]
            return [stamp, value] if _sound(value, reader) and stamp == _stamp(path) else None
        except (LookupError, TypeError, ValueError, ArithmeticError):
            return None

    def keep(self, entries, say):
        """Write {path: [stamp, value]} for the next time, where there is anything new; failures are never kept.

        Written to a temporary name and renamed: a run that starts meanwhile reads the old file or the new one.
        """
        files = {
            path.removeprefix(self.prefix): [stamp, value]
            for path, (stamp, value) in entries.items()
            if stamp is not None and not isinstance(value, InputError)
        }
        if self.path is None or files == self.entries:
            return
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"format": FORMAT, "files": files}), encoding="utf-8")
            part.replace(self.path)
        except (OSError, ValueError) as error:
            with suppress(OSError):
                part.unlink()
            say(f"the check's result isn't kept for the next time: {error}")


def _sound(value, reader):
    """Whether a remembered value has the form that its reader gives (a cache file may hold anything)."""
    if reader is read_size:
        width, height = value
        return type(width) is type(height) is int and min(width, height) > 0
    annotation = as_annotation(value)
    numbers = [annotation.width, annotation.height, *annotation.boxes.ravel()]
    return all(isinstance(name, str) for name in annotation.names) and bool(np.isfinite(numbers).all())
