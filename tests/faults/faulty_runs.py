"""The scripts in processes of their own, under limits, on disks that are full, and struck by signals.

The network answers at once in all of them (see quick.py). They are forks of a process that has imported what takes
seconds (see killing.py).
"""

import ctypes
import os
import resource
import runpy
import shutil
import signal
import sys
import time
from dataclasses import dataclass

from killing import LIMIT, PROCESSES, ROOT, start_server

__all__ = ["Running", "can_mount", "run_script", "start_server"]
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000  # names in sched.h and sys/mount.h


@dataclass(frozen=True)
class Ended:
    """code: exit code, negative for a signal; out, err: what it said; seconds: that it took."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def error_lines(self):
        """What stands on stderr beside notes and progress bars."""
        lines = [line.rpartition("\r")[2].strip() for line in self.err.splitlines()]
        return [line for line in lines if line and not line.startswith("note:") and "%|" not in line]


class Running:
    """A script that runs in a folder.

    Args:
        script: its name. flags: a string, or a list of strings. folder: to run in.
        file_size: most bytes of a file that it or what it starts may write (RLIMIT_FSIZE).
        prepare: (function, arguments) to call before the script begins.
        disk: bytes of a small disk, at folder/"disk"; what lies on it at the end is moved to folder/"left".
    """

    def __init__(self, script, flags, folder, **limits):
        flags = flags.split() if isinstance(flags, str) else [str(flag) for flag in flags]
        self.said = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
        self.started = time.monotonic()
        self.process = PROCESSES.Process(target=run, args=(script, flags, folder, self.said, limits))
        self.process.start()

    def signal(self, number):
        """Send a signal to the script alone."""
        os.kill(self.process.pid, number)

    def ended(self):
        """Wait for the end: Ended."""
        self.process.join(LIMIT)
        seconds = time.monotonic() - self.started
        assert self.process.exitcode is not None, "it doesn't end"
        return Ended(self.process.exitcode, *(path.read_text() for path in self.said), seconds)

    def wait_until_started(self):
        """Wait until the process listens to signals as the script does."""
        while not self.said[1].exists():
            assert self.process.is_alive()
            time.sleep(0.002)

    def clear(self):
        """Leave nothing behind, whatever has failed."""
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def run_script(*what, **how):
    """Run a script to its end: Ended. Arguments: those of Running."""
    running = Running(*what, **how)
    try:
        return running.ended()
    finally:
        running.clear()


def run(script, flags, folder, said, limits):
    """In the new process; ends it as `python script` would."""
    try:
        for number, path in enumerate(said, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(folder)
        os.environ["SSD_CACHE"] = str(folder.parent / "cache")
        if limits.get("disk"):
            run_on_disk(script, flags, folder, limits)
        else:
            run_here(script, flags, limits)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def run_here(script, flags, limits):
    """Run the script under its limits."""
    import quick

    sys.path.insert(0, str(ROOT))
    quick.answer_at_once()
    if limits.get("prepare"):
        function, arguments = limits["prepare"]
        function(*arguments)
    if limits.get("file_size"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_size"],) * 2)
    sys.argv = [script, *flags]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def run_on_disk(script, flags, folder, limits):
    """Mount a small disk that only this process sees, run the script in a fork, and save what lies there."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    mount(disk, limits["disk"])
    child = os.fork()
    if not child:
        code = 1
        try:
            run_here(script, flags, limits)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    shutil.copytree(disk, folder / "left")
    os._exit(os.waitstatus_to_exitcode(status))


def mount(folder, size):
    """Mount a disk of so many bytes at a folder, for this process and its children. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
    for done in (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()),
    ):
        if done():
            raise OSError(ctypes.get_errno(), "no disk can be mounted")


def try_to_mount(folder):
    mount(folder, 65536)


def can_mount(folder):
    """Whether a disk can be mounted here, which takes rights that a container may lack."""
    if sys.platform != "linux":
        return False
    process = PROCESSES.Process(target=try_to_mount, args=(folder,))
    process.start()
    process.join(LIMIT)
    return process.exitcode == 0
