"""Memory that was freed is used again, where the C library can be told to."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from data import allocator

ROOT = Path(__file__).resolve().parents[2]

# Pages that were given anew for twenty pieces of 40 MB, one at a time: before, and after what is tested. How many
# places glibc takes until an aligned piece fits into a freed one is chance, so the first twenty afterwards don't count.
PAGES = """
import resource
import torch
from data.allocator import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

as_usual = pages()
keep_freed_memory()
pages()
print(as_usual, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep memory")
def test_freed_memory_is_used_again():
    end = subprocess.run([sys.executable, "-c", PAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    as_usual, kept = map(int, end.stdout.split())
    assert kept < as_usual / 100


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())  # without mallopt
    allocator.keep_freed_memory()
