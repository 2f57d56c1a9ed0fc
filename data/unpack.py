"""Unpack the archives of data sets: safely, since an archive may hold any path, and telling when one is damaged."""

import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .errors import InputError


def unpack(archive, folder, *, progress=True):
    """Unpack a .tar (also compressed) or .zip file into `folder`; files that are there already are overwritten.

    Raises:
        InputError: the archive is damaged, or names a path outside `folder`, or the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    disable = None if progress else True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, disable)
        else:
            _unpack_tar(archive, folder, disable)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive} is damaged or unsafe ({error}); remove it to have it fetched again") from error
    except OSError as error:
        raise InputError(f"{archive} can't be unpacked into {folder}: {error.strerror or error}") from error


def _unpack_zip(archive, folder, disable):
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in member.filename:
                raise zipfile.BadZipFile(f"it names the path {member.filename!r}")
        for member in tqdm(members, desc=archive.name, unit="file", disable=disable):
            file.extract(member, folder)  # checks each file's CRC


def _unpack_tar(archive, folder, disable):
    if not hasattr(tarfile, "data_filter"):
        raise InputError("unpacking safely needs Python 3.10.12, 3.11.4 or a later one; update Python")
    with tarfile.open(archive) as file:
        for member in tqdm(file, desc=archive.name, unit="file", disable=disable):
            file.extract(member, folder, filter="data")  # refuses absolute paths, "..", devices and links outside
