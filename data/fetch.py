"""Fetch a file over HTTP so that it is there whole and right, or not at all.

A transfer goes to NAME.part, is resumed where it was cut off, and takes the file's name only when size and checksum
agree. Two processes that want the same file fetch it once. Proxies come from the environment (http_proxy, https_proxy).
"""

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import filelock
from tqdm import tqdm

from utils.errors import InputError

from .connection import UnsafeRedirect, build_opener

SILENCE_SECONDS = 30.0  # a server that sends nothing for so long has gone away
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try; a try that brings 1 MiB or more starts them anew
BLOCK = 1 << 20
BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP codes that may be gone a moment later


@dataclass(frozen=True)
class Remote:
    """A file on a server and what is known of it.

    sha256 may be its first digits only (eight or more), as torchvision puts them into its file names.
    """

    name: str
    address: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def checksum(self):
        """(algorithm, hexadecimal digits), or None where nothing is published."""
        if self.sha256:
            return "sha256", self.sha256.lower()
        return ("md5", self.md5.lower()) if self.md5 else None


class _CutOff(Exception):
    """The transfer stopped; another try may go on."""


class _Refused(Exception):
    """No further try will help."""


def fetch(remote, folder, *, progress=True):
    """Bring `remote` into `folder` (made where needed); returns its path there.

    A file of that name that is there already is checked and kept. progress: show a bar where stderr is a terminal.

    Raises:
        InputError: it can't be had, or what arrived (or lay there) isn't the published file. Nothing wrong is ever
            left under the file's name; what arrived of a cut-off transfer stays in NAME.part for the next run.
    """
    target = Path(folder) / remote.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_one(target):
            if not target.exists():
                _fetch_verified(remote, target, progress)
            elif problem := mismatch(target, remote):
                raise InputError(f"{target} is not the published file: {problem}; move it away to fetch it again")
    except _Refused as error:
        checksum = f" ({' '.join(remote.checksum)})" if remote.checksum else ""
        raise InputError(
            f"{remote.name} can't be fetched: {error}; get it from {remote.address}{checksum} "
            f"and put it into {target.parent}"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{target} can't be written: {reason}; free space or choose another folder") from error
    return target


@contextlib.contextmanager
def only_one(target):
    """Let one process at a time work on `target` (a path); others wait, and say so. The lock is `target`.lock."""
    path = Path(f"{target}.lock")
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{Path(target).name}: another process is fetching it; waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    except BaseException:
        lock.release()
        raise
    lock.release()
    # Now that the work is done the lock guards nothing: whoever waits on this file, and whoever makes a new one, finds
    # it done. (Windows refuses while somebody waits; the last one then takes the file away.)
    with contextlib.suppress(OSError):
        path.unlink()


def mismatch(path, remote):
    """What in the file at `path` disagrees with `remote`'s size and checksum: one phrase, or None if nothing does."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"it has {size:,} bytes and should have {remote.size:,}"
    if remote.checksum:
        algorithm, expected = remote.checksum
        found = digest(path, algorithm)
        if not found.startswith(expected):
            return f"its {algorithm} is {found} and should be {expected}"
    return None


def digest(path, algorithm="sha256"):
    """Checksum of a file in hexadecimal digits."""
    state = hashlib.new(algorithm)
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def _fetch_verified(remote, target, progress):
    part = target.with_name(f"{target.name}.part")
    if progress:
        print(f"fetching {remote.name} from {urlsplit(remote.address).hostname} to {target.parent}", file=sys.stderr)
    whole = _transfer(remote, part, progress)
    problem = mismatch(part, remote)
    if problem and not whole:  # the beginning may be of another version, or of a crashed disk: once more, from there
        part.unlink()
        _transfer(remote, part, progress)
        problem = mismatch(part, remote)
    if problem:
        part.unlink()
        raise _Refused(f"what the server sent is not the published file: {problem}")
    if not remote.checksum:
        print(
            f"{remote.name}: no checksum of it is published, so it can't be verified beyond its length; "
            f"its sha256 is {digest(part)}",
            file=sys.stderr,
        )
    part.replace(target)
    if os.name == "posix":  # the new name itself must survive a power cut, too
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _transfer(remote, part, progress):
    """Fill `part` up to the file's end, going on where it ends now. Returns whether it is all of one response."""
    whole, answered, validator = False, False, None
    failures, best = 0, _size(part)
    while remote.size is None or _size(part) != remote.size:
        if remote.size is not None and _size(part) > remote.size:
            part.unlink()
        try:
            response = _open(remote, part, validator)
            if response is None:
                break
            with response:
                answered = True
                validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
                whole = response.status == http.HTTPStatus.OK
                _receive(response, remote, part, progress)
            break
        except _CutOff as error:
            failures = 1 if _size(part) >= best + BLOCK else failures + 1
            best = max(best, _size(part))
            # No answer at all, at once: this machine is offline, or the server is gone.
            if failures > len(PAUSES) or (isinstance(error.__cause__, urllib.error.URLError) and not answered):
                raise _Refused(error) from error
            time.sleep(PAUSES[failures - 1])
    return whole


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _open(remote, part, validator):
    """Ask for what `part` still lacks. Returns the response, or None where `part` is the whole file already."""
    validator = None if validator is None or validator.startswith("W/") else validator
    if not remote.checksum and not validator:
        part.unlink(missing_ok=True)  # nothing would tell whether both halves are of one file
    offset = _size(part)
    headers = {"User-Agent": "ssd-pytorch", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator  # a file that changed meanwhile then comes whole
    request = urllib.request.Request(remote.address, headers=headers)
    try:
        return build_opener().open(request, timeout=SILENCE_SECONDS)
    except UnsafeRedirect as error:
        raise _Refused(error) from None
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
                if error.headers.get("Content-Range") == f"bytes */{offset}":
                    return None
                part.unlink()
                raise _CutOff("the server can't go on where the transfer ended") from None
            if error.code in BUSY:
                raise _CutOff(f"the server answers {error.code} {_reason(error.reason)}") from None
            if 300 <= error.code < 400:
                raise _Refused(f"the server redirects without end (HTTP {error.code})") from None
            raise _Refused(f"the server answers {error.code} {_reason(error.reason)}") from None
    except urllib.error.URLError as error:
        raise _CutOff(f"no connection to {urlsplit(remote.address).hostname} ({_reason(error.reason)})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a redirect to no address at all
        raise _CutOff(f"the server's answer broke off ({_reason(error)})") from None


def _reason(error):
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason[:200]  # a server may say anything, at any length


def _receive(response, remote, part, progress):
    """Append a response's body to `part`, or begin it anew where the server sends the file from its start."""
    if response.headers.get_content_type() == "text/html":
        raise _Refused("the server answers with a web page instead of the file")
    start, total = _extent(response, part)
    if remote.size is not None and total not in (None, remote.size):
        raise _Refused(f"the server offers {total:,} bytes and the published file has {remote.size:,}")
    total = remote.size if total is None else total
    if total is None and not remote.checksum:
        raise _Refused("the server doesn't say how long it is, so nothing tells whether it is whole")
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise _Refused(f"{part.parent} has {free / 1e6:,.0f} MB free and {(total - start) / 1e6:,.0f} MB are needed")
    bar = tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=remote.name, disable=None if progress else True
    )
    with part.open("ab" if start else "wb") as file, bar:
        try:
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
                if total is not None and file.tell() > total:
                    raise _Refused(f"the server sends more than the {total:,} bytes it should")
        finally:
            end = file.tell()
            file.flush()
            os.fsync(file.fileno())
    if total is not None and end < total:
        raise _CutOff(f"the transfer ended after {end:,} of {total:,} bytes")


def _extent(response, part):
    """(first byte, length of the whole file or None) of what a response holds."""
    if response.status == http.HTTPStatus.OK:
        length = re.fullmatch(r"\s*([0-9]{1,18})\s*", response.headers.get("Content-Length", ""))
        return 0, int(length[1]) if length else None
    found = re.fullmatch(
        r"\s*bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)\s*", response.headers.get("Content-Range", "")
    )
    if response.status != http.HTTPStatus.PARTIAL_CONTENT or not found or int(found[1]) != _size(part):
        part.unlink(missing_ok=True)
        raise _CutOff(f"the server answers with another part than asked for (HTTP {response.status})")
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _read(response):
    try:
        return response.read1(BLOCK)
    except TimeoutError:
        raise _CutOff(f"the server has been silent for {SILENCE_SECONDS:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise _CutOff(f"the connection broke ({_reason(error)})") from None
