"""Saving: whole or not at all, only finite weights, with the size said; a full disk is a sentence."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.tensor import DTensor

from smollit.errors import first_line
from smollit.models.checkpoint import is_value, read
from smollit.models.shards import write_digest
from smollit.modules import FineTuningModule
from smollit.modules.lost_steps import NonFiniteError
from smollit.training.checkpoints.files import describe, is_whole, newest_whole
from smollit.training.checkpoints.lineage import checkpoints

log = logging.getLogger(__name__)
REPLACED = ".old.tmp"  # ending of a folder that is being replaced


class NotSavedError(ValueError):
    """A checkpoint could not be written; the earlier ones are as they were."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name first, so that a full disk or a killed process leaves the old file as it was."""

    def __init__(self) -> None:
        self.values_only = False  # leave out what can only be read by executing code
        self.left_out: set[str] = set()  # names that were said

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`: to a temporary file in the same folder, flushed to the disk, then renamed."""
        if "://" in str(path):  # a remote file system has its own way to write files atomically
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if self.values_only:
            checkpoint = {name: self._values(name, content) for name, content in checkpoint.items()}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(target)
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except RuntimeError as error:  # torch's writer at a full disk: its text says nothing of it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def _values(self, name: str, content: Any) -> Any:
        """The content without entries that are more than values: with one of them, the file could not be read."""
        if is_value(content):
            return content
        entries = content if isinstance(content, dict) else {}
        bad = {key: f"{name}[{key!r}]" for key, value in entries.items() if not is_value(value)}
        for where in sorted({*(bad.values() or [name])} - self.left_out):
            log.error(
                "%s is left out of checkpoints, and a resumed run begins without it: it is more than numbers, texts,"
                " lists, dicts and tensors, and the file could not be read without executing code",
                where,
            )
        self.left_out |= {*bad.values(), name}
        return {key: value for key, value in entries.items() if key not in bad} or None

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file, or a folder of shards: under a temporary name, so that no half of a folder is left."""
        if Path(path).is_dir():
            hidden = temporary_name(Path(path))
            os.replace(path, hidden)
            path = hidden
        super().remove_checkpoint(path)


class SavingTrainer(Trainer):
    """A Trainer whose checkpoints of a FineTuningModule are whole, finite, and said with their size."""

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint, which appears complete or not at all; with several devices, all of them call it.

        Args:
            filepath: File to write; a sharded strategy that saves shards writes a folder.
            weights_only: Save no optimizer state, nor anything else that a resume needs.
            storage_options: Options of a checkpoint plugin.

        Raises:
            NonFiniteError: If weights or optimizer state are not finite: nothing is saved.
            NotSavedError: If the file system refuses.
        """
        checkpoint_io, is_ours = self.strategy.checkpoint_io, isinstance(self.lightning_module, FineTuningModule)
        if isinstance(checkpoint_io, AtomicCheckpointIO):
            checkpoint_io.values_only = is_ours
        path = Path(filepath)
        if is_ours:
            self._check_finite(path)
        if not is_ours or not isinstance(checkpoint_io, AtomicCheckpointIO) or "://" in str(filepath):
            super().save_checkpoint(filepath, weights_only, storage_options)
            return
        temporary = temporary_name(path)
        try:
            failure = self._write(temporary, weights_only, storage_options) or self._publish(temporary, path)
        finally:
            if self.is_global_zero:
                remove(temporary)
        # The first rank writes the file. The others end with it, instead of waiting for it in the next collective.
        failure = self.strategy.broadcast(failure)
        if failure:
            raise self._not_saved(path, failure)

    def _write(self, temporary: Path, weights_only: bool | None, storage_options: Any | None) -> str | None:
        """Write a file, or a folder of shards; return what went wrong on this rank."""
        try:
            super().save_checkpoint(temporary, weights_only, storage_options)
            return None
        except CheckpointException as error:  # of shards: torch raises it on all ranks
            return first_line(error)
        except OSError as error:
            self.strategy.barrier("Trainer.save_checkpoint")  # in which the ranks wait that do not write
            return first_line(error)

    def _publish(self, temporary: Path, path: Path) -> str | None:
        """Give what was written its name, on the first rank; return what went wrong."""
        if not self.is_global_zero:
            return None
        try:
            publish(temporary, path)
        except OSError as error:
            return first_line(error)
        log.info("saved %s, %s", describe(path), size_text(path))
        return None

    def _check_finite(self, path: Path) -> None:
        if not self.strategy.reduce_boolean_decision(all_finite(trained_tensors(self)), all=True):
            raise NonFiniteError(
                f"the weights or the optimizer state of step {self.global_step} are not finite, and are not saved as"
                f" {path}. Lower `model.learning_rate`, or set `trainer.gradient_clip_val`"
            )

    def _not_saved(self, path: Path, failure: str) -> NotSavedError:
        good = newest_whole(path.parent)
        advice = f" {describe(good)} is whole: the same command resumes from it" if good else ""
        return NotSavedError(
            f"{path} of step {self.global_step} could not be written ({failure}): make room, or set"
            f" `trainer.default_root_dir` to another disk.{advice}"
        )


def newest_finite(folder: Path) -> Path | None:
    """The newest checkpoint that a run can resume from, and whose weights are finite."""
    return next((path for path in checkpoints(folder) if is_whole(path) and _holds_finite_weights(path)), None)


def _holds_finite_weights(path: Path) -> bool:
    return all_finite(value for value in read(path).get("state_dict", {}).values() if isinstance(value, Tensor))


def trained_tensors(trainer: Trainer) -> Iterator[Tensor]:
    """This rank's part of the weights and of the optimizer state."""
    yield from trainer.lightning_module.parameters()
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


@torch.no_grad()
def all_finite(tensors: Iterator[Tensor]) -> bool:
    """Whether all values are finite: one pass over each tensor, and one wait for the device."""
    found: list[Tensor] = []
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.is_floating_point() and local.numel():
            # NaN and infinity are the smallest or the largest value. No boolean tensor of the same size is made.
            found += torch.aminmax(local)
    by_device = {tensor.device: [other for other in found if other.device == tensor.device] for tensor in found}
    return all(bool(torch.stack([v.float() for v in values]).isfinite().all()) for values in by_device.values())


# ---- files


def temporary_name(path: Path) -> Path:
    """The hidden name under which a checkpoint is written and removed."""
    return path.with_name(f".{path.name.removeprefix('.')}.tmp")


def publish(temporary: Path, path: Path) -> None:
    """Give a complete checkpoint its name; what had it is replaced."""
    if not temporary.exists():  # a rank without a file of its own
        return
    if temporary.is_dir():
        write_digest(temporary)
        flush(temporary)
    if path.is_dir():  # a folder can't be replaced in one step: the old one is out of the way for a moment
        old = path.with_name(f".{path.name}{REPLACED}")
        os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old)
        return
    os.replace(temporary, path)


def flush(folder: Path) -> None:
    """Write all files of a folder through to the disk."""
    for file in folder.iterdir():
        with file.open("rb") as content:
            os.fsync(content.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed saves left: only for the run that holds the lock of the run folder."""
    for old in folder.glob(f".*{REPLACED}"):
        target = old.with_name(old.name.removeprefix(".").removesuffix(REPLACED))
        if not target.exists():  # killed between the two renames of `publish`
            os.replace(old, target)
    for path in folder.glob(".*.ckpt*.tmp"):
        log.info("removed %s, which a killed run left unfinished", path)
        remove(path)


def size_text(path: Path) -> str:
    """Size of a file or a folder, such as 1.6 GB."""
    files = path.iterdir() if path.is_dir() else [path]
    size = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, {"B": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{size:.3g} {unit}"
