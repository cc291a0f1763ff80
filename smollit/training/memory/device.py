"""The memory of a device: free, in use, its peak; errors when it runs out; and the CPU allocator's setting."""

import ctypes
import resource
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

GIB = 1024**3
CGROUP = Path("/sys/fs/cgroup")
# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER, NONE = -1, 0
# The CPU's allocator has no dedicated exception.
MESSAGES = ("not enough memory", "DefaultCPUAllocator", "out of memory")


def free_bytes(device: torch.device) -> int | None:
    """Memory that new tensors can use, or None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(), 0)
    limits = (_available(Path("/proc/meminfo")), container_free(CGROUP))
    return min((limit for limit in limits if limit is not None), default=None)


def held_bytes(device: torch.device) -> int:
    """Memory in use now: tensors on a GPU; on a CPU the whole process, with its libraries and data."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    status = Path("/proc/self/status")
    return _kibibytes(status, "VmRSS") if status.is_file() else peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The highest memory use so far: of tensors on a GPU; on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()  # Metal keeps what is freed, and has no other record of the peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def container_free(cgroup: Path) -> int | None:
    """Memory below a container's limit, which /proc/meminfo does not know; None without a limit."""
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    return max(int(limit.read_text()) - int(used.read_text()), 0)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the rest of the process; return False where there is no glibc.

    By default, glibc maps memory for every large tensor and returns it to the system when it is freed, so the system
    clears the same pages repeatedly: about a tenth of a training step on a CPU, most where batches differ in size. The
    peak memory is the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, NONE) and mallopt(M_TRIM_THRESHOLD, NEVER))


def _available(meminfo: Path) -> int | None:
    """Linux's estimate of the memory available without swapping."""
    return _kibibytes(meminfo, "MemAvailable") if meminfo.is_file() else None


def _kibibytes(file: Path, name: str) -> int:
    """The value of a line such as `VmRSS:  1024 kB`, in bytes."""
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def is_sharded(trainer: Trainer) -> bool:
    """Whether each device holds only a part of the weights."""
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
