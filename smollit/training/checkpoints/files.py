"""Checkpoints: written atomically, old ones removed; the error for a bad one names a good one."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name first, so that a full disk or a killed process leaves the old file as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`: to a temporary file in the same folder, flushed to the disk, then renamed."""
        if "://" in str(path):  # a remote file system has its own way to write files atomically
            super().save_checkpoint(checkpoint, path, storage_options)
            return
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


def newest_first(folder: Path, pattern: str = "*.ckpt") -> list[Path]:
    """Checkpoints of a folder; unfinished files, whose names begin with a dot, do not count."""
    found = [path for path in folder.glob(pattern) if not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint written last, or None."""
    return next(iter(newest_first(folder)), None)


def best_checkpoint(callbacks: Iterable[Callback], folder: Path) -> Path | None:
    """The best checkpoint by a ModelCheckpoint's metric, of this process or noted in the folder's newest file."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
            return Path(callback.best_model_path)
    newest = latest_checkpoint(folder)
    states = check_readable(newest).get("callbacks", {}).values() if newest else ()
    noted = [state["best_model_path"] for state in states if isinstance(state, dict) and state.get("best_model_path")]
    for path in map(Path, noted):
        for candidate in (path, folder / path.name):  # the run folder may have been moved
            if candidate.exists():
                return candidate
    return None


def find_checkpoint(ckpt_path: str | Path, folder: Path, callbacks: Iterable[Callback] = ()) -> Path:
    """The file that `ckpt_path` means.

    Args:
        ckpt_path: A path; `last` is the newest of the folder, `best` the one that a ModelCheckpoint keeps.
        folder: The checkpoints of the run.
        callbacks: The callbacks of the run.

    Raises:
        ValueError: If it is missing or can't be read, or the run has no such checkpoint.
    """
    if ckpt_path == "last":
        path = latest_checkpoint(folder)
    else:
        path = best_checkpoint(callbacks, folder) if ckpt_path == "best" else Path(ckpt_path)
    if path is None:
        raise ValueError(
            f"there is no `{ckpt_path}` checkpoint in {folder}: train first"
            f"{' with a ModelCheckpoint that monitors a metric' if ckpt_path == 'best' else ''}, or set `ckpt_path`"
            " to a file, or to null for the model without a checkpoint"
        )
    check_readable(path)
    return path


def resume_path(ckpt_path: str | Path | None, folder: Path, callbacks: Iterable[Callback]) -> str | None:
    """The file that a fit resumes from, or None for a new run: `last` starts one where there is no checkpoint yet.

    Raises:
        ValueError: If the file is missing, can't be read, or holds only weights.
    """
    newest = latest_checkpoint(folder)
    if ckpt_path is None and newest is not None:
        log.warning("%s holds checkpoints of an earlier run: a new run replaces them", folder)
    if ckpt_path is None or (ckpt_path == "last" and newest is None):
        return None
    path = find_checkpoint(ckpt_path, folder, callbacks)
    check_resumable(path)
    return str(path)


def check_readable(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file, with its tensors left on the disk; empty for a folder of shards.

    Raises:
        ValueError: If it is missing or can't be read; names the newest readable one in its folder.
    """
    path = Path(path)
    if path.is_dir():
        return {}
    if not path.is_file():
        raise ValueError(f"`ckpt_path` is {path}, and there is no such file: give a .ckpt file, `last`, or null")
    try:
        return _peek(path)
    except Exception as error:  # torch raises a dozen types for a file that is truncated or of another kind
        good = next((other for other in newest_first(path.parent) if other != path and _is_whole(other)), None)
        advice = f"The newest readable one is {good}: set `ckpt_path` to it" if good else "Set `ckpt_path` to null"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"`ckpt_path` {path} can't be read as a checkpoint ({reason}). {advice}") from error


def check_resumable(path: str | Path) -> None:
    """Refuse a file that can't be read, or holds only weights.

    Raises:
        ValueError: If the file is missing, can't be read, or has no optimizer state.
    """
    if not Path(path).is_dir() and "optimizer_states" not in check_readable(path):
        raise ValueError(
            f"{path} holds only weights, so a run can't resume from it. To start a new run from these weights,"
            " set `model.init_from` to it, and `ckpt_path` to null"
        )


def _peek(path: Path) -> dict[str, Any]:
    checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"it holds a {type(checkpoint).__name__}")
    return checkpoint


def _is_whole(path: Path) -> bool:
    try:
        return path.is_dir() or "optimizer_states" in _peek(path)
    except Exception:
        return False
