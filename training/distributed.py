"""Several processes that train one network, as torchrun starts them."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import InputError, printable


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job; a job of one needs no torchrun.

    Attributes:
        rank: of this process, 0 writes.
        local: of this process on its machine; also the number of its CUDA device.
        world: number of processes.
    """

    rank: int = 0
    local: int = 0
    world: int = 1

    @property
    def writes(self):
        return self.rank == 0

    def say(self, text):
        """Print lines, on rank 0 alone; names in them, of files or of what is in files, steer no terminal."""
        if self.writes:
            print("\n".join(map(printable, text.split("\n"))), flush=True)


def join(device, batch_size):
    """Join torchrun's job, if there is one.

    Args:
        device: torch device of the run; decides the backend (NCCL or Gloo).
        batch_size: over all ranks.

    Raises:
        InputError: the batch can't be shared equally.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if batch_size % world:
        raise InputError(f"--batch_size {batch_size}: it counts all processes and must be a multiple of their {world}")
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), world)
    if device.type == "cuda":
        torch.cuda.set_device(ranks.local)
    # A rank that dies is noticed by torchrun, which ends the others; the timeout is for one that hangs.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    return ranks


def leave():
    """Leave the job, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(tensor):
    """Add up a float tensor over the ranks, in place (all of them must ask at the same iteration)."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag, device):
    """Whether the flag is set on any rank (all of them must ask at the same iteration)."""
    if not dist.is_initialized():
        return flag  # without a trip to the device, for which the host would wait
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)) > 0)
