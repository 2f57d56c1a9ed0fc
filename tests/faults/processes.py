"""Scripts in processes that fork from a server with all imports: under limits, on full disks, killed while writing."""

import ctypes
import itertools
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from inference import Detector

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds that nothing takes, however busy the machine is
PROCESSES = multiprocessing.get_context("forkserver")
HEAVY = ["training.engine", "training.log", "training.pretrain", "metrics.report", "inference.video"]
NO_DISK = "no disk can be mounted here"


def start_server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "faults"))))
        patch.setenv("OMP_NUM_THREADS", "1")
        PROCESSES.set_forkserver_preload([*HEAVY, "matplotlib.pyplot", "processes"])
        forkserver.ensure_running()


class Script:
    """A script that runs in a folder, in a session of its own.

    Args:
        name: such as "train.py".
        flags: as typed.
        folder: to run in. What the script prints is beside it.
        prepare: (function, arguments) called before the script starts.
        disk: size in bytes of a disk mounted at folder/disk; its contents are in folder/left at the end.
        quick: let the Detector answer at once: the tiny network finds the same in every image.
    """

    def __init__(self, name, flags, folder, *, prepare=None, disk=0, quick=True):
        self.folder, self.code = folder, None
        folder.mkdir(exist_ok=True)
        self.files = [folder.with_name(f"{folder.name}.{stream}") for stream in ("out", "err")]
        for path in self.files:
            path.unlink(missing_ok=True)
        arguments = name, flags.split(), folder, self.files, prepare, disk, quick
        self.process = PROCESSES.Process(target=_run, args=arguments)
        self.process.start()
        self.wait_until(self.files[1].exists)
        self.started = time.monotonic()  # the first one waits for the server's imports

    out = property(lambda self: self.files[0].read_text())
    err = property(lambda self: self.files[1].read_text())

    @property
    def errors(self):
        """Lines on stderr without notes and progress bars."""
        lines = [line.rpartition("\r")[2].strip() for line in self.err.splitlines()]
        return [line for line in lines if line and not line.startswith("note:") and "%|" not in line]

    def wait_until(self, condition):
        """Wait until a condition holds, which it must before the script ends."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert self.process.is_alive() or condition(), f"ended by itself:\n{self.err}"
            assert time.monotonic() < deadline, "nothing happens"
            time.sleep(0.005)

    def signal(self, number, group=False):
        """Send a signal to the script, or also to all that it started."""
        with suppress(ProcessLookupError):  # it has ended
            (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self):
        """Wait for the script and all that it started; set `code` (negative for a signal) and `seconds`."""
        if self.code is None:
            self.process.join(LIMIT)
            self.code, self.seconds = self.process.exitcode, time.monotonic() - self.started
            assert self.code is not None, "it doesn't end"
            while _is_session(self.process.pid):  # ffmpeg has a process group of its own
                assert time.monotonic() < self.started + self.seconds + LIMIT, "a process is left behind"
                time.sleep(0.02)
        return self

    def assert_refused(self, *words):
        """Wait for the end, which must be one line with these words, and exit code 2."""
        self.wait()
        assert self.code == 2, self.err
        (line,) = self.errors
        assert line.startswith("error: ")
        assert all(word in line for word in words), line


def _is_session(number):
    """Return whether a process of a session runs (Linux only)."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, *_, session = path.read_text().rpartition(")")[2].split()[:4]
            if session == str(number) and state != "Z":
                return True
    return False


def _run(name, flags, folder, files, prepare, disk, quick):
    """Run a script in the new process as `python name flags` does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before and after the script, Ctrl-C is no traceback of these tests
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # so that loader workers don't import everything again
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ["SSD_CACHE"] = str(folder.parent / "cache")
    sys.path.insert(0, str(ROOT))
    sys.argv = [name, *flags]
    if quick:
        answer_at_once()
    if disk:
        _mount(folder / "disk", disk)
    try:
        if prepare:
            prepare[0](*prepare[1])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        runpy.run_path(str(ROOT / name), run_name="__main__")
    except KeyboardInterrupt:  # before the script handles it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if disk:
            shutil.copytree(folder / "disk", folder / "left")


def _mount(folder, size):
    """Mount a disk of `size` bytes for this process and its children."""
    folder.mkdir()
    private = ["mount", "--make-rprivate", "/"]
    disk = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    failed = ctypes.CDLL(None).unshare(0x20000)  # CLONE_NEWNS in sched.h
    if failed or any(subprocess.run(command, check=False).returncode for command in (private, disk)):
        raise OSError(NO_DISK)


def answer_at_once():
    """From now on, each Detector computes a single gray image and repeats its outputs for all others."""
    compute, known = Detector.outputs, {}

    def outputs(detector, images):
        if detector not in known:
            known[detector] = compute(detector, [torch.full_like(images[0], 128)])
        return [output.expand(len(images), -1, -1) for output in known[detector]]

    Detector.outputs = outputs


def limit_file_size(size):
    """From now on, a file that this process or its children write holds at most `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(room):
    """From now on, this process may take at most `room` bytes more of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)


def signal_within(owner, name, call, number):
    """From now on, this process gets a signal within the `call`-th call of a method."""
    method, calls = getattr(owner, name), itertools.count(1)

    def struck(*arguments):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return method(*arguments)

    setattr(owner, name, struck)


def die_while_writing(suffix, moment):
    """From now on, this process kills itself "before the sync" or rename of a file, after it or "within its bytes"."""
    reached = ""

    def watch(event, arguments):
        nonlocal reached
        if event not in ("open", "os.rename"):
            return
        if reached == "before the rename":
            reached = "after the rename"
        elif ".writing-" in str(arguments[0]) and str(arguments[0]).endswith(suffix):
            by_os_open = event == "open" and arguments[1] is None
            reached = "before the rename" if event == "os.rename" else "before the sync" if by_os_open else reached
        if reached == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if moment == "within its bytes":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limit_file_size(100_000)
