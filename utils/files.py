"""Files: write a file completely or not at all, check a file before reading it, and hash it; the cache folder."""

import hashlib
import os
import platform
import re
import stat
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from secrets import token_hex

import platformdirs

from utils.errors import InputError

_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # several machines may write to a folder
_UNFINISHED = re.compile(rf"\.writing-{_MACHINE}-([0-9]+)-.*")  # .writing-<machine>-<process id>-<random><suffix>


@contextmanager
def whole_file(path):
    """Write a file completely or not at all, even if the process is killed.

    Yields a temporary path beside `path`, with the same suffix. When the block succeeds, the temporary file is synced
    to the disk and renamed to `path`; when it raises, the temporary file is removed and an earlier `path` stays. The
    temporary files of killed processes are removed by the next process of the same machine that writes to the folder.

    Raises InputError if the file can't be written.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))  # write through a link instead of replacing it
    temporary = target.with_name(f".writing-{_MACHINE}-{os.getpid()}-{token_hex(4)}{target.suffix}")
    try:
        if target.exists() and not target.is_file():
            raise InputError(f"{path}: not a regular file; choose another name")
        remove_unfinished(target.parent)
        try:
            yield temporary
            _sync(temporary, os.O_RDWR)  # Windows syncs only files that are open for writing
            temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename not in (None, str(temporary), str(target)):  # about another file
            raise
        raise InputError(f"{path}: can't be written ({error.strerror or error})") from error
    with suppress(OSError):  # Windows and some network drives can't sync a folder
        _sync(target.parent)


def make_folder(path, flag):
    """Create a folder and its parents, and return its Path.

    Raises InputError, with the flag that the path is from, if that fails.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path}: can't be created ({error.strerror}); choose another folder") from error
    return Path(path)


def _sync(path, flags=os.O_RDONLY):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=64)  # once for each folder, which may contain many files
def remove_unfinished(folder):
    """Remove the temporary files that killed processes left in a folder."""
    with suppress(OSError):
        for path in Path(folder).glob(".writing-*"):
            match = _UNFINISHED.fullmatch(path.name)
            if match and not _is_running(int(match[1])):
                path.unlink()


def _is_running(process_id):
    if os.name != "posix":  # os.kill(id, 0) would end the process on Windows
        return True
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def check_regular(path):
    """Raise OSError unless `path` is a regular file: reading a device or a pipe may never end."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 (path may be a str)
    except ValueError as error:  # a NUL in the name
        raise OSError(22, "invalid file name", str(path)) from error
    if not regular:
        raise OSError(22, "not a regular file", str(path))


def cache_folder():
    """Return the folder of the user's cache: $SSD_CACHE, or the system's place for caches."""
    return Path(os.environ.get("SSD_CACHE") or platformdirs.user_cache_dir("ssd-pytorch"))


def file_hash(path, algorithm="sha256"):
    """Return the hash of a file as hexadecimal digits."""
    state = hashlib.new(algorithm)
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            state.update(block)
    return state.hexdigest()
