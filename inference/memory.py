"""Go on with smaller batches where memory runs out."""

import sys
from threading import Lock

import torch
from tqdm import tqdm

from utils.errors import InputError

# What CPU allocators, oneDNN, ONNX Runtime, OpenVINO, cuBLAS and cuDNN say; they have no exception of their own for it.
WORDS = ("can't allocate memory", "DefaultCPUAllocator", "out of memory", "bad_alloc", "bad allocation")
WORDS += ("Failed to allocate memory", "could not create a memory", "CUBLAS_STATUS_ALLOC_FAILED")
WORDS += ("unable to find an engine to execute this computation",)  # which cuDNN says where its workspace has no room


def is_out_of_memory(error):
    """Whether an exception says that there was not enough memory, of the computer or of the device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(word in str(error) for word in WORDS)


class WithinMemory:
    """Calls a function on lists, in parts that fit into memory: after a failure with half as many items, for good.

    May be called from several threads at once.

    Args:
        function: from a list to a list of as many results.
        noun: what the items are, for the user.
    """

    def __init__(self, function, noun="frames"):
        self.function = function
        self.noun = noun
        self.most = sys.maxsize
        self._lock = Lock()

    def __call__(self, items):
        """The results for a list of items. Raises InputError where there isn't even memory for one."""
        results = []
        while len(results) < len(items):
            part = items[len(results) : len(results) + self.most]
            found = self._attempt(part)
            if found is None:  # only here, where the failure's tensors are gone
                self._halve(len(part))
            else:
                results += found
        return results

    def _attempt(self, part):
        """function(part), or None where memory doesn't suffice."""
        try:
            return self.function(part)
        except Exception as error:  # each library has its own
            if not is_out_of_memory(error):
                raise
            return None

    def _halve(self, size):
        """Take at most half of a size from now on, and say so once."""
        if size == 1:
            raise InputError(
                f"memory doesn't suffice for a single one of the {self.noun}: end other programs, set OMP_NUM_THREADS "
                "to fewer threads, or take a smaller network with --trained_model"
            )
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        with self._lock:
            if self.most > size // 2:  # else another thread has done it
                self.most = size // 2
                note = f"note: memory doesn't suffice for {size} {self.noun} at a time: going on with {self.most}"
                tqdm.write(note, file=sys.stderr)  # above a progress bar, where there is one
