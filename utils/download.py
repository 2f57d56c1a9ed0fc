"""Download a file, complete and verified or not at all, and unpack an archive safely."""

import os
import shutil
import sys
import tarfile
import time
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import filelock
import requests
from tqdm import tqdm
from urllib3.util import Retry, parse_url

from utils.errors import InputError
from utils.files import file_hash

CONNECT_SECONDS, SILENCE_SECONDS = 4.0, 30.0  # timeouts of a connection and of a read
TRIES, BACKOFF = 5, 1.0  # number of tries, and seconds between them (if the server is busy, doubled each time)
BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes to try again after
# An archive may unpack to MAX_RATIO times its size (COCO's unpacks to 10 times), and always to HARMLESS bytes.
MAX_RATIO, HARMLESS = 100, 100 * 2**20


@dataclass(frozen=True)
class Remote:
    """A published file: its size in bytes and its checksum, such as "md5 c52e2795" (a prefix is enough)."""

    name: str
    address: str
    size: int | None = None
    checksum: str | None = None

    def mismatch(self, path):
        """Return how a file differs from the published one, as a phrase, or None."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"found {size:,} bytes, expected {self.size:,}"
        algorithm, _, digits = (self.checksum or "sha256 ").partition(" ")
        found = file_hash(path, algorithm)
        return None if found.startswith(digits) else f"found {algorithm} {found}, expected {digits}"


def fetch(remote, folder):
    """Download a Remote into `folder` unless it is there already, and return its path.

    The data is written to NAME.part, which the next try or run resumes. The file is renamed after it is verified.

    Raises InputError if the download failed, or the file (new or existing) is not the published one.
    """
    target = Path(folder) / remote.name
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_one(target):
            if not target.exists():
                _fetch_verified(remote, part)
                part.replace(target)
            elif problem := remote.mismatch(target):
                raise InputError(f"{target}: not the published file ({problem}); remove it to download it again")
    except (requests.RequestException, ValueError) as error:  # ValueError: the server redirects to no valid address
        source = f"{remote.address} ({remote.checksum})" if remote.checksum else remote.address
        remedy = f"get it from {source} and put it into {target.parent}"
        raise InputError(f"{remote.name}: can't be downloaded ({_reason(error)}); {remedy}") from error
    except OSError as error:
        raise InputError(f"{target}: not written ({_reason(error)}); free space or choose another folder") from error
    return target


@contextmanager
def only_one(target):
    """Let one process at a time work on the path `target`; the others wait. The lock is TARGET.lock."""
    lock = filelock.FileLock(f"{target}.lock")
    try:
        held = lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"{target}: waiting for another process that downloads it", file=sys.stderr)
        held = lock.acquire()
    with held:
        yield
    with suppress(OSError):  # later processes find `target` complete; Windows can't remove a lock in use
        Path(lock.lock_file).unlink()


def _fetch_verified(remote, part):
    if not remote.checksum:
        part.unlink(missing_ok=True)  # without a checksum, the parts may be of different files
    resumed = part.exists()
    _transfer(remote, part)
    if problem := remote.mismatch(part):
        part.unlink()
        if not resumed:
            raise requests.RequestException(f"the server sent another file: {problem}")
        _fetch_verified(remote, part)  # the part of an earlier run may be damaged or outdated


def _transfer(remote, part):
    """Append to `part` until the file is complete, with up to TRIES connections."""
    busy = Retry(TRIES, connect=0, read=0, other=0, status_forcelist=BUSY, backoff_factor=BACKOFF)
    busy.respect_retry_after_header = False  # it may ask for hours
    timeout = (CONNECT_SECONDS, SILENCE_SECONDS)
    with requests.Session() as session:
        session.adapters.clear()  # without an adapter for http, a redirect from https to http fails
        for scheme in {"https", parse_url(remote.address).scheme}:
            session.mount(f"{scheme}://", requests.adapters.HTTPAdapter(max_retries=busy))
        for tries_left in reversed(range(TRIES)):
            offset = part.stat().st_size if part.exists() and remote.checksum else 0
            headers = {"Accept-Encoding": "identity", "Range": f"bytes={offset}-"}
            try:
                with session.get(remote.address, headers=headers, stream=True, timeout=timeout) as response:
                    _append(response, remote, part, offset)
                    break
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:  # it broke
                if not tries_left or (isinstance(error, requests.ConnectTimeout) and not part.exists()):
                    raise
                time.sleep(BACKOFF)


def _append(response, remote, part, offset):
    """Write a response's body to `part`, from byte `offset` or from the start of the file."""
    if response.status_code == requests.codes.requested_range_not_satisfiable and offset:
        return  # `part` is complete, or its checksum is wrong
    response.raise_for_status()
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise requests.RequestException("the server answers with a web page instead of the file")
    start = offset if response.status_code == requests.codes.partial_content else 0
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else remote.size
    if remote.size not in (None, total):
        raise requests.RequestException(f"the server offers {total:,} bytes, expected {remote.size:,}")
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=remote.name, disable=None)
    with part.open("ab" if start else "wb") as file, bar:
        for block in response.iter_content(2**16):  # a broken connection loses at most one block
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())


def _reason(error):
    """Return the innermost cause of an exception as a phrase; the messages of requests are long."""
    while error.__context__ is not None:
        error = error.__context__
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]


def unpack(archive, folder):
    """Unpack a .zip or an uncompressed .tar file into `folder`; existing files are overwritten.

    Raises:
        InputError: the archive is damaged, has paths outside `folder` or links, would unpack to too many bytes, or the
            disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive, "r:") as file:
            _write_members(_members(file), archive, folder)
    except OSError as error:
        raise InputError(f"{archive}: can't be unpacked into {folder} ({_reason(error)})") from error
    except Exception as error:  # tarfile and zipfile raise many kinds of exceptions on damaged headers
        raise InputError(f"{archive}: damaged or unsafe ({_reason(error)}); remove it to download it again") from error


def _members(file):
    """Yield (name, size, whether it is a folder, function that opens it) of each member of a ZipFile or TarFile."""
    if isinstance(file, zipfile.ZipFile):
        for member in file.infolist():
            yield member.filename, member.file_size, member.is_dir(), partial(file.open, member)
        return
    for member in file:
        if not (member.isreg() or member.isdir()):
            raise ValueError(f"{member.name!r} is a link or a device")
        yield member.name, member.size, member.isdir(), partial(file.extractfile, member)


def _write_members(members, archive, folder):
    """Write the members' contents, but not their owner, mode and time, which an archive could misuse."""
    unpacked, allowed = 0, max(HARMLESS, MAX_RATIO * archive.stat().st_size)
    for name, size, is_folder, open_member in tqdm(members, desc=archive.name, unit="file", disable=None):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name:
            raise ValueError(f"it contains the path {name!r}")
        unpacked += size
        if unpacked > allowed:
            raise ValueError(f"it would unpack to {unpacked:,} bytes")
        target = folder / path
        (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
        if not is_folder:
            with open_member() as source, target.open("wb") as output:
                shutil.copyfileobj(source, output)
