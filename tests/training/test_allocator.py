"""Freed memory that stays with the process, by the pages that the system has to clear."""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys, torch
from smollit.training.allocator import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(16 * 2**20).fill_(1.0)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):  # the heap grows to what it needs
    faults()
print(int(kept), faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_memory_of_a_freed_tensor_is_used_again_without_new_pages() -> None:
    """64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB: each tensor needs them anew by default, and none if kept."""
    found = {
        mode: [int(n) for n in subprocess.check_output([sys.executable, "-c", MEASURE, mode], text=True).split()]
        for mode in ("keep", "default")
    }
    assert found["keep"][0] == 1
    assert found["keep"][1] < 16
    assert found["default"][1] >= 32
