"""Unpack the archives of data sets: safely, since an archive may hold any path, and telling when one is damaged."""

import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.errors import InputError

# COCO's annotations, which are text, shrink to a tenth; what shrinks to a hundredth was made to fill a disk.
LARGEST_RATIO, HARMLESS = 100, 100 * 2**20
OTHERS = (ValueError, RuntimeError, struct.error, lzma.LZMAError)  # of zipfile and tarfile, on damaged headers


def unpack(archive, folder, *, progress=True):
    """Unpack a .tar or .zip file into `folder`; files that are there already are overwritten.

    A compressed .tar is refused: no data set comes so, and its size tells nothing of what it unpacks to.

    Raises:
        InputError: the archive is damaged, names a path outside `folder`, holds anything but files and folders, or
            unpacks to more than pictures and annotations do; or the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    disable = None if progress else True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, disable)
        else:
            _unpack_tar(archive, folder, disable)
    except OSError as error:
        raise InputError(f"{archive} can't be unpacked into {folder}: {error.strerror or error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ArithmeticError, LookupError, *OTHERS) as error:
        raise InputError(
            f"{archive} is damaged or unsafe ({str(error)[:200]}); remove it to have it fetched again"
        ) from error


def _unpack_zip(archive, folder, disable):
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        _refuse_bomb(archive, sum(member.file_size for member in members), zipfile.BadZipFile)
        for member in members:
            _refuse_outside(member.filename, zipfile.BadZipFile)
        for member in tqdm(members, desc=archive.name, unit="file", disable=disable):
            file.extract(member, folder)  # checks each file's CRC


def _unpack_tar(archive, folder, disable):
    unpacked = 0
    with tarfile.open(archive, "r:") as file:
        for member in tqdm(file, desc=archive.name, unit="file", disable=disable):
            unpacked += member.size
            _refuse_bomb(archive, unpacked, tarfile.TarError)  # a sparse file says any size
            if not (member.isreg() or member.isdir()):
                raise tarfile.TarError(f"{member.name!r} is a link or a device")
            _refuse_outside(member.name, tarfile.TarError)
            # Not by extract(), which takes over owner, mode and time, and whose safe form not every Python has.
            path = folder / member.name
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.extractfile(member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)


def _refuse_outside(name, error):
    """Raise `error` where a member's name leads out of the folder that it is unpacked into."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise error(f"it names the path {name!r}")


def _refuse_bomb(archive, unpacked, error):
    """Raise `error` where an archive unpacks to so many bytes that it was made to do harm."""
    if unpacked > max(HARMLESS, LARGEST_RATIO * archive.stat().st_size):
        raise error(f"it would unpack to {unpacked:,} bytes")
