"""Distributed training, evaluation and detection: several processes, started by torchrun."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import InputError, say
from utils.system import choose_device


@dataclass(frozen=True)
class Ranks:
    """The position of this process in the job; a job of one process needs no torchrun."""

    rank: int = 0  # of this process; rank 0 prints and writes files
    local: int = 0  # rank on this machine, also the number of its CUDA device
    world: int = 1  # number of processes
    control: dist.ProcessGroup | None = None  # gloo, for values on the host: it does not synchronize with the device

    @property
    def is_main(self):
        return self.rank == 0

    def say(self, text):
        """Print on rank 0."""
        if self.is_main:
            say(text)

    def any(self, flag):
        """Return whether `flag` is set on any rank. All ranks must call this at the same iteration."""
        if self.world == 1:
            return bool(flag)
        flags = torch.tensor(float(bool(flag)))
        dist.all_reduce(flags, group=self.control)
        return bool(flags > 0)

    def wait(self):
        """Wait until all ranks arrive, for as long as it takes (NCCL would give up after its timeout)."""
        if self.world > 1:
            dist.barrier(group=self.control)

    def gather(self, share):
        """Join the lists of all ranks in the original order; rank r has items r, r + world, ..."""
        if self.world == 1:
            return share
        shares = [None] * self.world
        dist.all_gather_object(shares, share, group=self.control)
        gathered = [None] * sum(map(len, shares))
        for rank, items in enumerate(shares):
            gathered[rank :: self.world] = items
        return gathered


@contextmanager
def join(device_name):
    """Join torchrun's job, if there is one; leave it at the end. Yields (Ranks, torch.device of this process).

    device_name is as for `choose_device`, which raises InputError; "auto" and "cuda" mean the device of the local rank.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(), choose_device(device_name)
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device_name == "cuda" or (device_name == "auto" and torch.cuda.is_available()):
        device_name = f"cuda:{local}"
    device = choose_device(device_name)
    if device.type == "cuda":
        if device.index != local:
            raise InputError(f"--device {device_name}: all processes would share one device; use --device cuda")
        torch.cuda.set_device(device)
    # torchrun ends the other ranks when one dies; the timeout is for a rank that hangs.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    try:
        control = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        yield Ranks(int(os.environ["RANK"]), local, world, control), device
    finally:
        dist.destroy_process_group()
