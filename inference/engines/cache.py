"""What took long to make, kept in the user's cache folder. Any file there may be deleted at any time."""

import os
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import filelock

from data.cache import cache_folder
from utils.errors import printable

# What reading a damaged file can end in.
DAMAGED = (OSError, EOFError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)


def kept(name, make):
    """What is kept under a name; made, and kept, where nothing whole is.

    Where several processes ask at once, one makes it and the others wait for it.

    Args:
        name: a file name that says all that the contents depend on, as a hash.
        make: function without arguments that gives the contents.

    Returns:
        The contents: {name: bytes}.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    path = folder / "engines" / f"{name}.zip"
    with suppress(*DAMAGED):
        return _read(path)
    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path)
    except (OSError, NotImplementedError) as error:  # a folder, or a file system, that can't be written or locked
        print(printable(f"note: not kept for the next time: {error}"), file=sys.stderr)
        return make()
    try:
        with suppress(*DAMAGED):
            return _read(path)  # another process has made it meanwhile
        contents = make()
        _write(path, contents)
        return contents
    finally:
        lock.release()


def _acquire(lock, path):
    """Wait for a lock, and say so where that takes a while."""
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        print(printable(f"{path.name}: another process is making it; waiting"), file=sys.stderr)
        lock.acquire()


def _read(path):
    """{name: bytes} of a file that _write wrote; its checksums are verified. Raises one of DAMAGED."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path, contents):
    """Write {name: bytes}, whole or not at all; a note on stderr where that fails."""
    part = Path(f"{path}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
        part.replace(path)
    except OSError as error:
        print(printable(f"note: not kept for the next time: {path}: {error.strerror}"), file=sys.stderr)
    finally:
        with suppress(OSError):
            part.unlink()
