"""Try hostile inputs on a reader in a forked process, and record how each ended."""

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

from ledger import HOSTILE

from utils.errors import InputError

SECONDS = 5  # CPU time that one input may take, of this process and the programs it starts
MEGABYTES = 2048  # memory that the process may reach, with all libraries
SILENCE = 120  # seconds until a process that sends nothing is killed: it sleeps, or hangs in native code


class Hang(BaseException):
    """An input takes more than SECONDS. Not an Exception, which readers may catch."""


def attack(kind, path, make, read, count=1, named=None):
    """Read `count` inputs; fail unless each ends in a result or in an InputError that names it.

    Args:
        kind: kind of file, for the table; it seeds the generators.
        path: of the input.
        make: function from a random.Random to bytes, which are written to `path`; None reads what is there.
        read: function of `path`, under test.
        count: number of inputs.
        named: what a refusal must contain; the file's name if not given.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    arguments = kind, Path(path), make, read, count, named or Path(path).name, sender.send
    process = fork.Process(target=_try_all, args=arguments, daemon=True)
    process.start()
    sender.close()
    inputs = []
    with suppress(EOFError):
        while receiver.poll(SILENCE):
            inputs.append(receiver.recv())
    if len(inputs) < count:
        process.join(1)
        ending = "silent" if process.exitcode is None else f"the process died with exit code {process.exitcode}"
        process.kill()
        inputs.append((ending, 0.0, 0.0))
    process.join()
    HOSTILE[kind] += inputs
    failed = [f"input {n}: {ending}" for n, (ending, *_) in enumerate(inputs) if ending not in ("result", "refused")]
    assert not failed, "\n\n".join(
        [f"{len(failed)} of {count} inputs of kind {kind!r} failed; the first:", *failed[:6]]
    )


def expect_refusal(path, read):
    """Read one file; fail unless that ends in an InputError that names it."""
    attack("bomb", path, None, read)
    assert HOSTILE["bomb"][-1][0] == "refused", f"{path} was accepted"


def _try_all(kind, path, make, read, count, named, send):
    """Try all inputs, in the forked process."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # decoders print warnings
        os.dup2(silence, stream)
    warnings.simplefilter("ignore")
    with suppress(OSError):  # no Linux. This limit only protects the machine: MEGABYTES is measured.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 8 * 2**30, resource.RLIM_INFINITY))
    for number in range(count):
        if make:
            path.write_bytes(make(random.Random(f"{kind} {number}")))
        ending, seconds, megabytes = _try(path, read, named)
        if make and ending not in ("result", "refused"):
            path.rename(path.with_name(f"failed-{number}{path.suffix}"))
        send((ending, seconds, megabytes))


def _try(path, read, named):
    """Return ("result", "refused" or what went wrong; seconds; megabytes)."""

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
        is_clear = named in str(error) and len(str(error)) < 1500 + len(str(path))
        ending = "refused" if is_clear else f"refused without its name, or at length: {str(error)[:300]}"
    except BaseException:
        ending = traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = sum(os.times()[:4]) - started
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    megabytes = max(peaks) / (2**20 if sys.platform == "darwin" else 2**10)
    if ending in ("result", "refused") and (seconds > SECONDS or megabytes > MEGABYTES):
        ending = f"took {seconds:.1f} s and {megabytes:,.0f} MB"
    return ending, seconds, megabytes
