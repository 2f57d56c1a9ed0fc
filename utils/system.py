"""Devices and precision, signals, threads and memory."""

import ctypes
import platform
import re
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import torch

from utils.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Found in the RuntimeError messages of PyTorch, oneDNN, OpenVINO, cuBLAS and cuDNN when they are out of memory.
_OUT_OF_MEMORY = re.compile(
    "can't allocate memory|DefaultCPUAllocator|out of memory|bad.alloc|Failed to allocate memory"
    "|could not create a memory|CUBLAS_STATUS_ALLOC_FAILED|unable to find an engine to execute this computation"
)


def choose_device(name):
    """Return the torch.device for "auto" (CUDA if available, else CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises InputError if the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; use auto, cpu, cuda or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("--device cuda: CUDA is not available; use --device auto or cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"--device {name}: no such device (found {torch.cuda.device_count()} CUDA devices)")
        if device.index is None:  # the current device differs between threads
            return torch.device("cuda", torch.cuda.current_device())
    elif device.type != "cpu" and not (device.type == "mps" and torch.backends.mps.is_available()):
        raise InputError(f"--device {name}: unsupported, or not available; use auto, cpu, cuda or mps")
    return device


def device_name(name, engine="auto", precision="auto", cuda=True):
    """Return the name for `choose_device`: "cpu" for "auto" without `cuda` or with OpenVINO, otherwise `name`."""
    on_cpu = not cuda or engine == "openvino" or precision == "int8"
    return "cpu" if name == "auto" and on_cpu else name


def choose_precision(name, device):
    """Return the torch.dtype for a name; "auto" is the fastest one on `device`.

    Raises InputError if the name is unknown.
    """
    if name in PRECISIONS:
        return PRECISIONS[name]
    if name != "auto":
        raise InputError(f"--precision {name}: unknown; use auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":  # bfloat16 has float32's range; VGG's activations can exceed float16's
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if device.type == "cpu" and bfloat16_is_fastest() else torch.float32


def bfloat16_is_fastest():
    """Return True if the CPU has AMX, or is an AMD with AVX512_BF16.

    With AVX512_BF16 alone, bfloat16 was 1.4 to 2 times as fast as float32 on AMD. On Intel, it was slower: by a factor
    of 1.2 in PyTorch and of 1.7 in OpenVINO.
    """
    return _cpu_has("_is_amx_tile_supported") or (is_amd() and cpu_computes_bfloat16())


def is_amd():
    """Return True if the CPU is an AMD."""
    cpuinfo = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (cpuinfo.read_text() if cpuinfo.is_file() else platform.processor())


def cpu_computes_bfloat16():
    """Return True if the CPU has instructions for bfloat16, AVX512_BF16 or AMX."""
    return _cpu_has("_is_avx512_bf16_supported") or _cpu_has("_is_amx_tile_supported")


def _cpu_has(probe):
    probe = getattr(torch.cpu, probe, None)  # private functions of PyTorch
    return probe is not None and probe()


@contextmanager
def report_out_of_memory(remedy):
    """A context that turns out-of-memory exceptions into an InputError with the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise InputError(f"out of memory; {remedy}") from error


def keep_freed_memory():
    """Make glibc keep freed memory instead of returning large blocks to the system.

    Feature maps and images are allocated many times a second, and the system fills new memory with zeros. That takes
    5 % of the time of detection, 20 % of training a narrow network and 33 % of augmentation. Only scripts and
    DataLoader workers call this, because it affects the whole process.
    """
    mmap_max, trim_threshold = -4, -1  # names in malloc.h
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(mmap_max, 0)  # everything comes from the heap
            mallopt(trim_threshold, 512 * 2**20)


class StopSignals:
    """A context in which Ctrl-C and SIGTERM only set `number`, so that the work in progress can be finished and saved.

    After a signal, Ctrl-C raises KeyboardInterrupt and SIGTERM is ignored. Outside the main thread, signals are not
    changed.

    Attributes:
        number: number of the signal, 0 if there was none; bool() of the object is True after a signal.
    """

    def __init__(self):
        self.number = 0
        self._previous = {}

    def __bool__(self):
        return self.number != 0

    def __enter__(self):
        with suppress(ValueError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)
        return self

    def _stop(self, number, frame):
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@contextmanager
def thread_counts(threads):
    """A context in which OpenCV uses `threads` threads; at its end PyTorch's and OpenCV's counts are restored.

    PyTorch has one count per thread. A new thread starts with the last count that any thread has set.
    """
    previous = torch.get_num_threads(), cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(previous[0])
        cv2.setNumThreads(previous[1])
