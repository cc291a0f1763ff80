"""Memory of the device: what is free, what this process holds, and what it held at most."""

import resource
import sys
from pathlib import Path

import torch

GIB = 1024**3
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """What a new tensor may still take; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [size for size in (_available(Path("/proc/meminfo")), _container_rest(CGROUP)) if size is not None]
    return min(found, default=None)


def _available(meminfo: Path) -> int | None:
    """Linux's own estimate of what can be had without swapping."""
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _container_rest(folder: Path) -> int | None:
    """What a container's limit leaves: the machine's own figure knows nothing of it."""
    limit, used = folder / "memory.max", folder / "memory.current"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    return max(int(limit.read_text()) - int(used.read_text()), 0)


def held_bytes(device: torch.device) -> int:
    """What this process holds before the model: on a CPU the libraries and the data, on a GPU tensors."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_bytes(device)
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def peak_bytes(device: torch.device) -> int:
    """The most that was held at one time: by tensors on a GPU, or else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
