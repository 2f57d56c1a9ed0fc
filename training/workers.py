"""How the processes that load a training's pictures are set up."""

import signal

from utils.system import keep_freed_memory


def set_up_worker(_):
    """For a DataLoader's worker_init_fn: keep memory, and leave the first SIGTERM or Ctrl-C to the run.

    The run saves its state before it ends; schedulers and terminals send a signal to all processes of a job, and torch
    ends a run that loses a worker.
    """
    keep_freed_memory()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))
