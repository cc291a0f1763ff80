"""Memory of the device as the system reports it, and freed memory that stays with the process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smollit.training.memory import container_free, held_bytes, peak_bytes

MEASURE = """
import resource, sys, torch
from smollit.training.memory import keep_freed_memory
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


def test_a_containers_limit_leaves_what_is_not_used(tmp_path: Path) -> None:
    """A limit of 100 with 60 in use leaves 40; `max` and a missing file are no limit."""
    assert container_free(tmp_path) is None
    (tmp_path / "memory.max").write_text("100\n")
    (tmp_path / "memory.current").write_text("60\n")
    assert container_free(tmp_path) == 40
    (tmp_path / "memory.max").write_text("max\n")
    assert container_free(tmp_path) is None


def test_the_peak_is_at_least_what_is_held() -> None:
    cpu = torch.device("cpu")
    assert peak_bytes(cpu) >= 0.9 * held_bytes(cpu) > 1024**2
