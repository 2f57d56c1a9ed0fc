"""What the download scripts share: fetch an archive, unpack it, look whether all of it arrived."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Archive:
    """An archive and how to tell that it is unpacked.

    unpack_to: folder inside the target. check: called with the target folder; returns (problem or None, what is there
    in words).
    """

    name: str
    address: str
    size: int
    md5: str
    unpack_to: str
    check: Callable[[Path], tuple[str | None, str]]


def bring(title, archives, folder, *, keep_archives=False):
    """Have all archives unpacked and complete in `folder`; what is there already is left as it is.

    An interrupted run goes on where it stopped. Raises InputError where something can't be had or is incomplete.
    """
    from data.fetch import only_one
    from utils.errors import InputError

    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} can't be made ({error.strerror}); choose another folder") from error
    with only_one(folder / title):
        missing = [archive for archive in archives if not _is_complete(archive, folder)]
        if missing:
            size = sum(archive.size for archive in missing) / 1e9
            print(f"{title}: {size:.1f} GB to fetch and as much again, while unpacking, on the disk of {folder}")
        for archive in missing:
            _bring_one(archive, folder, keep_archives)
        for archive in archives:
            print(f"{title}: {archive.check(folder)[1]}")
    print(f"{title}: complete in {folder}")


def _is_complete(archive, folder):
    return not _marker(archive, folder).exists() and archive.check(folder)[0] is None


def _marker(archive, folder):
    """Lies there while the archive is unpacked: after an interruption the newest file may be cut off."""
    return folder / f"{archive.name}.unpacking"


def _bring_one(archive, folder, keep_archive):
    from data.fetch import Remote, fetch
    from data.unpack import unpack
    from utils.errors import InputError

    path = fetch(Remote(archive.name, archive.address, size=archive.size, md5=archive.md5), folder)
    _marker(archive, folder).touch()
    unpack(path, folder / archive.unpack_to)
    problem, _ = archive.check(folder)
    if problem:
        raise InputError(f"{archive.name} is unpacked, but {problem}; is something else writing to {folder}?")
    _marker(archive, folder).unlink()
    if not keep_archive:
        path.unlink()
