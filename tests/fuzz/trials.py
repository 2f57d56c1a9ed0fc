"""Try hostile inputs on a reader in a forked process: each must end soon, in little memory, and clearly."""

import multiprocessing
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.errors import InputError

COUNTS = {  # kind of file: number of inputs in the short form; --long multiplies them by six
    "VOC annotation": 1400, "split": 400, "COCO annotations": 1400, "COCO results": 900, "detection file": 900,
    "JPEG": 1200, "PNG": 1000, "WebP": 300, "BMP and PPM": 200, "TIFF": 400, "JPEG 2000": 200, "MP4": 40,
    "archive": 800, "checkpoint, bytes": 400, "checkpoint, values": 400, "state dict": 100, "run state": 100,
}  # fmt: skip
SECONDS = 5  # CPU time that one input may take, of this process and the programs it starts
MEGABYTES = 1650  # memory that reading may add; 2 GB with all libraries
SILENCE = 120  # seconds until a process that sends nothing is killed: it sleeps, or hangs in native code


class Hang(BaseException):
    """An input takes more than SECONDS. Not an Exception, which readers may catch."""


def try_all(kind, path, make, read, count=1, named=None):
    """Read `count` inputs; fail unless each ends in a result or in an InputError that names it.

    kind: of file; it seeds the generators. make: function from a random.Random to bytes, which are written to `path`;
    None reads what is there. read: function of `path`, under test, which must write nothing into the working directory.
    named: words that a refusal must contain; the file's name if not given. Returns "result" or "refused" for each.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    arguments = kind, path, make, read, count, named or (path.name,), sender.send
    (process := fork.Process(target=_read_all, args=arguments, daemon=True)).start()
    sender.close()
    endings = []
    with suppress(EOFError):
        while receiver.poll(SILENCE):
            endings.append(receiver.recv())
    if len(endings) < count:
        process.join(1)
        endings.append("silent" if process.exitcode is None else f"the process died with exit code {process.exitcode}")
        process.kill()
    process.join()
    failed = [f"input {n}: {ending}" for n, ending in enumerate(endings) if ending not in ("result", "refused")]
    assert not failed, "\n\n".join([f"{len(failed)} of {count} inputs failed ({kind}); the first:", *failed[:6]])
    return endings


def expect_refusal(path, read, *words):
    """Read one file; fail unless that ends in an InputError that contains its name and the words."""
    assert try_all("bomb", path, None, read, named=(path.name, *words)) == ["refused"], f"{path} was accepted"


def _read_all(kind, path, make, read, count, named, send):
    """Try all inputs, in the forked process."""
    before = _peak()  # of the tests that the parent has run
    for stream in (1, 2):  # decoders print warnings
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    warnings.simplefilter("ignore")
    with suppress(OSError):  # no Linux. This limit only protects the machine: MEGABYTES is measured.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 8 * 2**30, resource.RLIM_INFINITY))
    with TemporaryDirectory() as empty:
        os.chdir(empty)
        for number in range(count):
            if make:
                path.write_bytes(make(random.Random(f"{kind} {number}")))
            ending = _read_one(path, read, named, before)
            if any(Path(empty).iterdir()):
                ending = "wrote into the working directory"
            send(ending)


def _peak():
    """Return the largest memory so far of this process and of its children, in MB."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) / (2**20 if sys.platform == "darwin" else 2**10)


def _read_one(path, read, named, before):
    """Return "result", "refused" or what went wrong."""

    def hang(*_):
        raise Hang

    with suppress(OSError):  # no Linux: the peak is that of all inputs so far
        Path("/proc/self/clear_refs").write_text("5")
    signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    started = sum(os.times()[:4])
    try:
        read(path)
        ending = "result"
    except InputError as error:
        is_clear = all(word in str(error) for word in named) and len(str(error)) < 1500 + len(str(path))
        ending = "refused" if is_clear else f"refused without its name, or at length: {str(error)[:300]}"
    except BaseException:
        ending = traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = sum(os.times()[:4]) - started
    megabytes = _peak() - before
    if ending in ("result", "refused") and (seconds > SECONDS or megabytes > MEGABYTES):
        ending = f"took {seconds:.1f} s and {megabytes:,.0f} MB"
    return ending
