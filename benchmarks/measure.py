"""Time two ways of doing the same work in turn, so that both meet the same machine."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch


@dataclass(frozen=True)
class Settings:
    """What the cases are measured with.

    Attributes:
        device: torch device.
        quick: few rounds, short clips.
        clip: path of the video for the video cases.
    """

    device: torch.device
    quick: bool
    clip: str


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: what is done.
        ours, peer: functions without arguments that do it; peer may be None.
        peer_name: what a user would take instead.
        items: pictures (frames) that one call works on.
        rounds: timed calls of each side.
    """

    name: str
    ours: Callable
    peer: Callable | None = None
    peer_name: str = "plain"
    items: int = 1
    rounds: int = 15


@dataclass(frozen=True)
class Measured:
    """Medians of a case in milliseconds a picture, and how many times as fast as the peer ours is."""

    stage: str
    name: str
    ours_ms: float
    peer_ms: float | None
    peer: str
    ratio: float | None

    @property
    def line(self):
        peer = f"{self.peer_ms:>10.2f}{self.ratio:>8.1f}  {self.peer}" if self.peer_ms else ""
        return f"{self.name:<62}{self.ours_ms:>10.2f}{1000 / self.ours_ms:>10.1f}{peer}"


HEADER = f"{'':<62}{'ours, ms':>10}{'a second':>10}{'peer, ms':>10}{'ratio':>8}  peer"


def measure(stage, case, settings):
    """Run a case: a Measured."""
    rounds = max(2, case.rounds // 5) if settings.quick else case.rounds
    sides = [side for side in (case.ours, case.peer) if side]
    for side in sides:
        side()  # not timed: memory is allocated, kernels are chosen
    times = [[milliseconds(side, settings.device) for side in sides] for _ in range(rounds)]
    ours, *peer = (median(side) / case.items for side in zip(*times, strict=True))
    peer = peer[0] if peer else None
    return Measured(stage, case.name, ours, peer, case.peer_name, peer / ours if peer else None)


def milliseconds(function, device):
    """Wall time of one call, of what it left to do on the device too."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return (time.perf_counter() - start) * 1000


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device, dtype, quick=False):
    """The best measured rate of a matrix product, in GFLOP/s (a multiplication and an addition are two)."""
    best = 0.0
    for side in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        a @ b
        for _ in range(3 if quick else 10):
            best = max(best, 2 * side**3 / milliseconds(lambda a=a, b=b: a @ b, device) / 1e6)
    return best


def machine(settings):
    """What the figures were measured on: dict."""
    device = settings.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_name():
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
