"""Where a run computes: versions and device, written to environment.json at each start that makes a step."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.paths import reading, write_whole

FILE = "environment.json"
PACKAGES = ("smollit", "torch", "lightning", "transformers", "tokenizers", "datasets")
# What the libraries of a CPU choose their instructions by.
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")


class Environment(Callback):
    """Adds one entry to environment.json: versions, device, threads, and the step that this start began with."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            entries = [*starts(folder), {"step": trainer.global_step} | describe(trainer)]
            write_whole(folder / FILE, json.dumps(entries, indent=2) + "\n")


def note_config(folder: Path, name: str) -> None:
    """Add, to the entry of the last start, the name of the file that has its settings."""
    entries = starts(folder)
    if entries:
        entries[-1]["config"] = name
        write_whole(folder / FILE, json.dumps(entries, indent=2) + "\n")


def config_of(folder: Path, step: float) -> Path:
    """The file with the settings of the start that made a step; config.yaml for runs of older versions."""
    names = [start.get("config") for start in starts(folder) if start["step"] < step]
    return folder / ((names and names[-1]) or "config.yaml")


def describe(trainer: Trainer) -> dict[str, Any]:
    """Versions, device, threads, strategy and precision of this process."""
    device = trainer.strategy.root_device
    return {
        **{name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "devices": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def starts(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run folder, the first start first; none in runs of older versions.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / FILE
    with reading(path):
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found
