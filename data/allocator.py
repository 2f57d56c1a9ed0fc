"""How the C library hands out memory, set for programs that need the same large pieces again and again."""

import ctypes
import sys
from contextlib import suppress

KEPT = 512 * 2**20  # bytes at the heap's end that aren't returned to the system
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names in malloc.h


def keep_freed_memory():
    """Let the process reuse memory that it freed; glibc else returns large pieces to the system at once.

    Feature maps and pictures come and go many times a second, and to have their pages given anew and zeroed takes a
    twentieth of the time of detection, a fifth of that of training a narrow network, a third of the augmentation's.
    For a script, or a loader's worker, to call, as it holds for the whole process.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(MMAP_MAX, 0)  # all of it comes from the heap
            mallopt(TRIM_THRESHOLD, KEPT)
