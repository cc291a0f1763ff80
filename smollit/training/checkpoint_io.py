"""Checkpoints appear whole or not at all: written beside their place, flushed to the disk, then renamed."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name first, so that a full disk or a killed process leaves the old file as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint written last, or None; names of unfinished files begin with a dot and do not count."""
    found = [path for path in folder.glob("*.ckpt") if not path.name.startswith(".")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def check_resumable(path: str | Path) -> None:
    """Refuse a file that holds only weights.

    Raises:
        ValueError: If the file is missing, can't be read, or has no optimizer state.
    """
    path = Path(path)
    if path.is_dir():
        return
    if not path.is_file():
        raise ValueError(f"`ckpt_path` is {path}, and there is no such file: give a .ckpt file, `last`, or null")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:
        raise ValueError(f"`ckpt_path` {path} can't be read as a checkpoint: {error}") from error
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds only weights, so a run can't go on from it. To start a new run from these weights,"
            " set `model.init_from` to it, and `ckpt_path` to null"
        )
