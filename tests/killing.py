"""Training runs in processes of their own, which can be killed at any moment and started again."""

import csv
import io
import multiprocessing
import os
import random
import re
import runpy
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from test_train import SMALL, log_of

from weights.checkpoint import read_file

ROOT = Path(__file__).resolve().parents[1]
FINAL = "ssd300_w005_final.pth"
LIMIT = 600  # seconds that nothing takes, however busy the machine is
PROCESSES = multiprocessing.get_context("forkserver")


def start_server():
    """Start the process that all runs are forks of: it has imported what train.py needs, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path(__file__).parent}")
        patch.setenv("OMP_NUM_THREADS", "1")
        PROCESSES.set_forkserver_preload(["training.loop", "matplotlib.pyplot", "killing"])
        forkserver.ensure_running()


class Job:
    """train.py with certain arguments, in a process that can be started again after its death.

    Args:
        pictures: folder in VOC format.
        folder: of the run.
        settings: more of the command line.
        anew: start `python train.py` from nothing, not as a fork.
    """

    def __init__(self, pictures, folder, settings, anew=False):
        self.folder, self.anew, self.output = folder, anew, folder.with_suffix(".out")
        paths = ["--dataset", str(pictures), "--save_folder", str(folder)]
        self.arguments = [*paths, *SMALL.split(), *settings.split()]
        self.random = random.Random(settings)
        self.process, self.rows_before = None, 0

    def start(self, death=None):
        """Start, or go on after a death; `death`: what die_while_writing takes."""
        self.rows_before = self.rows()
        resume = ["--resume", "auto"] if self.folder.exists() else []
        self.output.write_text("")
        details = (self.arguments + resume, self.output, death, self.anew, multiprocessing.get_start_method())
        self.process = PROCESSES.Process(target=run_train, args=details)
        self.process.start()

    def said(self):
        return self.output.read_text()

    def rows(self):
        """The iteration of log.csv's last whole row, 0 where there is none."""
        table = self.folder / "log.csv"
        numbers = re.findall(r"^(\d+),.*\n", table.read_text() if table.exists() else "", re.MULTILINE)
        return int(numbers[-1]) if numbers else 0

    def newest_state(self):
        """The iteration of the newest state in the folder, 0 where there is none. All of them must be whole."""
        return max((read_file(path)["iteration"] for path in self.folder.glob("state_*.pth")), default=0)

    def resumed_from(self):
        """The iteration that the process says it has gone on from, 0 where it began at the beginning."""
        found = re.search(r"going on from .*state_.*, iteration (\d+)", self.said())
        return int(found[1]) if found else 0

    def wait_until(self, condition):
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert self.process.is_alive(), f"it ended by itself:\n{self.said()}"
            assert time.monotonic() < deadline, f"nothing happens:\n{self.said()}"
            time.sleep(0.005)

    def wait_for_row(self, iteration):
        """Wait for the row of an iteration, of those that no process before has written, and a little longer."""
        self.wait_until(lambda: self.rows() >= max(iteration, self.rows_before + 1))
        time.sleep(self.random.uniform(0, 0.15))  # about an iteration

    def kill(self):
        """SIGKILL for the process and its workers; returns the iterations of the last row and the newest state."""
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.died()

    def died(self):
        """Wait for the death of the process, which must be by SIGKILL; returns what `kill` does."""
        assert self.exit_code() == -signal.SIGKILL, f"not killed:\n{self.said()}"
        return self.rows(), self.newest_state()

    def exit_code(self):
        """Wait for the end of the process; its exit code, negative for a signal."""
        self.process.join(LIMIT)
        return self.process.exitcode

    def clear(self):
        """Leave no process behind, whatever has failed."""
        if self.process is not None and self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)

    def results(self):
        """All that a run leaves which must not depend on interruptions: final weights, last state, log."""
        assert self.exit_code() == 0, self.said()
        final, state = read_file(self.folder / FINAL), read_file(self.folder / f"state_{self.newest_state()}.pth")
        del final["trained_with"]  # the command, with or without --resume
        del state["rng"]  # torch draws from it for each loader that is opened, but no step does
        return {"final": final, "state": state, "log": log_of(self.folder)}

    def files(self):
        """Names in the folder, sorted; states without their iteration, which depends on where it was interrupted."""
        return sorted(re.sub(r"state_\d+", "state", path.name) for path in self.folder.iterdir())


def run_train(arguments, output, death, anew, start_method):
    """In the new process: train.py as a command runs it, with everything it says in a file."""
    os.setsid()
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["SSD_CACHE"] = str(output.parent / "cache")
    if anew:
        os.execv(sys.executable, [sys.executable, "train.py", *arguments])
    multiprocessing.set_start_method(start_method, force=True)  # of the loader's workers: as in a new process
    if death is not None:
        die_while_writing(*death)
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")


def die_while_writing(target, moment):
    """From now on this process kills itself at a moment of the writing of the file whose name holds `target`."""
    save, sync, rename, rows = torch.save, os.fsync, Path.replace, csv.writer
    saving = ""

    def reach(this_moment, name):
        if moment == this_moment and target in name:
            os.kill(os.getpid(), signal.SIGKILL)

    def torch_save(contents, file):
        nonlocal saving
        saving = Path(file.name).name
        whole = io.BytesIO()
        save(contents, whole)
        for half in (whole.getvalue()[: whole.tell() // 2], whole.getvalue()[whole.tell() // 2 :]):
            file.write(half)
            file.flush()
            reach("within its bytes", saving)

    def os_fsync(number):
        reach("before the sync", saving)
        sync(number)

    def path_replace(path, new):
        reach("before the rename", Path(new).name)
        rename(path, new)
        reach("after the rename", Path(new).name)

    def csv_writer(file, *more, **settings):
        reach("before its rows", Path(file.name).name)
        return rows(file, *more, **settings)

    torch.save, os.fsync, Path.replace, csv.writer = torch_save, os_fsync, path_replace, csv_writer
