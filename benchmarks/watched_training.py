"""Run train.py; raise an error if a training step on CUDA synchronizes with the host. For first_gpu.sh.

The first three steps may synchronize: they choose kernels and copy the mean to the device.
"""

import runpy
import sys

import torch

from training.engine import Trainer


def watch(step):
    """Return `Trainer.step` with the check from the fourth call on."""
    calls = 0

    def watched(self, *args):
        nonlocal calls
        calls += 1
        if self.device.type != "cuda" or calls <= 3:
            return step(self, *args)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched


if __name__ == "__main__":
    Trainer.step = watch(Trainer.step)
    sys.argv[0] = "train.py"
    runpy.run_path("train.py", run_name="__main__")
