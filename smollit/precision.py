"""Which precision is fast on the device at hand: a run whose precision is slow there says so at its start."""

import sys
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
# Flags of processors with bf16 matrix products, the fastest first: Intel's tiles, AVX-512 of Intel and AMD, Arm.
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
LARGE = 50_000_000  # parameters; smaller models gain little from bf16 on a CPU


def bf16_flag(cpuinfo: Path = CPUINFO) -> str | None:
    """The processor's instructions for bf16 matrix products, as Linux names them; None where there are none."""
    if sys.platform != "linux" or not cpuinfo.is_file():
        return None
    words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    return next((flag for flag in BF16_FLAGS if flag in words), None)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than those of fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or bf16_flag(CPUINFO) is not None


def slow_precision(precision: str, kind: str, *, fast_bf16: bool, parameters: int) -> str | None:
    """Why a run's precision is slow on its device, and the setting to change; None where it is not.

    Args:
        precision: The trainer's.
        kind: Type of the device: `cpu`, `cuda` or `mps`.
        fast_bf16: Whether the device has bf16 matrix products.
        parameters: Number of parameters of the model.
    """
    uses_bf16, set_to = precision.startswith("bf16"), "set `trainer.precision` to"
    if kind == "cpu" and uses_bf16 and not fast_bf16:
        return (
            f"`trainer.precision` is {precision}, and this processor has neither AVX512-BF16 nor AMX: bf16 matrix"
            f" products are many times slower than those of fp32; {set_to} 32-true"
        )
    if kind == "cpu" and precision == "32-true" and fast_bf16 and parameters >= LARGE:
        return f"`trainer.precision` is 32-true, and this processor has fast bf16: {set_to} bf16-mixed for more speed"
    if kind == "cuda" and uses_bf16 and not fast_bf16:
        return f"`trainer.precision` is {precision}, and this GPU has no bf16: {set_to} 16-mixed or 32-true"
    if kind == "cuda" and precision in ("32-true", "64-true"):
        better = "bf16-mixed" if fast_bf16 else "16-mixed"
        return f"`trainer.precision` is {precision}, which is several times slower on a GPU: {set_to} {better}"
    return None
