"""Try many hostile inputs on a reader, in a process of its own, and keep count of how each ended."""

import faulthandler
import json
import os
import random
import select
import shutil
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

from ledger import HOSTILE, Tally, count_input

from utils.errors import InputError

if os.name == "posix":  # elsewhere nothing forks, and the tests of this folder are skipped
    import resource

SECONDS = 5  # of the processor's time that one input may take, whatever else the machine does meanwhile
MEGABYTES = 2048  # that the process may reach, all libraries included


class Hang(BaseException):
    """An input took longer than SECONDS; no `except Exception` on the way swallows it."""


def attack(kind, make, read, count, folder):
    """Read `count` inputs; fails where one ends in neither a result nor an InputError that names it.

    Args:
        kind: name of the kind of file, for the table; it seeds the generators.
        make: (random.Random, folder) -> path of the input it wrote.
        read: path -> whatever; what is under trial.
        count: number of inputs.
        folder: to work in.
    """
    failures = []
    for line in in_a_fork(lambda say: _try_all(kind, make, read, count, folder, say), folder):
        outcome = line.get("outcome")
        if outcome is None:
            failures.append(f"the process ended: {line['died']}")
            count_input(kind, Tally(failed=1))
            continue
        result, refused = outcome == "result", outcome == "refused"
        failed = not (result or refused)
        if failed:
            failures.append(f"input {line['number']} ({line['path']}): {outcome}")
        count_input(kind, Tally(result, refused, failed, line["seconds"], line["megabytes"]))
    shown = "\n\n".join(failures[:6])
    assert not failures, f"{len(failures)} of {count} inputs of kind {kind!r} ended badly; the first:\n{shown}"


def expect_refusal(kind, path, read, folder):
    """Read the one file at `path`; fails unless it ends in an InputError that names it."""
    before = HOSTILE.get(kind, Tally()).refused
    attack(kind, lambda rng, _: path, read, 1, folder)
    assert HOSTILE[kind].refused == before + 1, f"{path.name} was taken"


def _try_all(kind, make, read, count, folder, say):
    for number in range(count):
        rng = random.Random(f"{kind} {number}")
        path = Path(make(rng, folder))
        outcome, seconds, megabytes = one_trial(read, path)
        if outcome not in ("result", "refused"):
            kept = folder / f"found-{number}{path.suffix}"
            if path.is_file():
                shutil.copy(path, kept)
            path = kept
        say(
            {
                "number": number,
                "outcome": outcome,
                "seconds": seconds,
                "megabytes": megabytes,
                "path": str(path).encode("ascii", "backslashreplace").decode(),
            }
        )


def one_trial(read, path):
    """(outcome, seconds, megabytes) of reading one file; the outcome is "result", "refused" or what went wrong."""

    def ring(*_):
        raise Hang

    signal.signal(signal.SIGPROF, ring)
    _forget_peak()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    started = _used()
    try:
        read(path)
        outcome = "result"
    except InputError as error:
        outcome = _judge(str(error), path)
    except Hang:
        outcome = f"took more than {SECONDS} s:\n{traceback.format_exc(limit=-4)}"
    except BaseException:
        outcome = traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds, megabytes = _used() - started, _peak()
    if megabytes > MEGABYTES:
        outcome = f"took {megabytes:,.0f} MB"
    return outcome, seconds, megabytes


def _judge(message, path):
    if path.name not in message:
        return f"refused without its name: {message[:300]}"
    if len(message) > 1500 + len(str(path)):
        return f"refused with {len(message)} characters: {message[:300]}"
    return "refused"


def in_a_fork(work, folder):
    """Run work(say) in a forked process; yields what it says. A process that dies or falls silent is one line more."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        _child(work, readable, writable, folder)
    os.close(writable)
    with os.fdopen(readable, "rb", buffering=0) as pipe:
        rest, silent = b"", False
        while not silent:
            silent = not select.select([pipe], [], [], 24 * SECONDS)[0]  # asleep, or in native code
            data = b"" if silent else os.read(pipe.fileno(), 1 << 16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            yield from map(json.loads, lines)
    if silent:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        crash = folder / "crash.txt"
        stack = crash.read_text() if crash.exists() else ""
        yield {"died": f"{'silent for two minutes; ' if silent else ''}exit status {status}\n{stack}"}


def _child(work, readable, writable, folder):
    """The forked process: says what it has to say and ends without any of pytest's own endings."""
    status = 1
    try:
        os.close(readable)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):  # decoders complain on stderr
            os.dup2(silence, stream)
        with (folder / "crash.txt").open("w") as crash:
            faulthandler.enable(crash)
            # Far above what is allowed, which is measured: only to spare the machine.
            resource.setrlimit(resource.RLIMIT_AS, (_pages(0) + 8 * 2**30, resource.RLIM_INFINITY))
            warnings.simplefilter("ignore")
            work(lambda line: os.write(writable, json.dumps(line).encode() + b"\n"))
            status = 0
    except BaseException:
        (folder / "crash.txt").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _used():
    """Seconds of the processor that this process and the programs it ran have had."""
    return sum(os.times()[:4])


def _pages(column):
    """Bytes of address space (0) or of memory (1) of this process, where the system tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()
    except OSError:
        return 2**40


def _forget_peak():
    with suppress(OSError):  # no Linux: the peak of all inputs before counts too
        Path("/proc/self/clear_refs").write_text("5")


def _peak():
    """Most memory in MB since _forget_peak, or of all the time where the system can't forget; of programs run, too."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        own = int(status.partition("VmHWM:")[2].split()[0])
    return max(own, children) / (2**20 if sys.platform == "darwin" else 2**10)
