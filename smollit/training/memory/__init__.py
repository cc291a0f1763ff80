"""Memory: that of a device (device.py), settings that need less (advice.py), micro-batches that fit (budget.py)."""

from smollit.training.memory.device import GIB, peak_bytes

__all__ = ["GIB", "peak_bytes"]
