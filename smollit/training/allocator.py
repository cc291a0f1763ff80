"""Training on a CPU: freed memory stays with the process."""

import ctypes
import sys

# From malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER, NONE = -1, 0


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, for the whole process; False where there is no glibc.

    By default it maps every large tensor anew and gives it back at once, so that the system clears its pages again and
    again: about a tenth of a step on a CPU, most where batches differ in size. The peak of memory stays as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, NONE) and mallopt(M_TRIM_THRESHOLD, NEVER))
