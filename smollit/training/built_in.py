"""The callbacks of every run of a FineTuningModule: built in code, so a config can't remove them by accident."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from smollit.training.console import ProgressBar, StartSummary
from smollit.training.out_of_memory import OutOfMemory
from smollit.training.predictions import WritePredictions
from smollit.training.reference import ReferenceScores
from smollit.training.state import RunState
from smollit.training.stop import GracefulStop


def run_logger(folder: str) -> TensorBoardLogger:
    """TensorBoard events in the run folder itself."""
    return TensorBoardLogger(save_dir=folder, name="", version="", default_hp_metric=False)


def with_built_in(
    callbacks: Sequence[Callback], asked_for: Sequence[Callback], run_state: RunState, folder: Path | None
) -> list[Callback]:
    """The callbacks of a run, in their order.

    Args:
        callbacks: The trainer's callbacks.
        asked_for: Those that the user requested: the others are Lightning's defaults, which smollit's replace.
        run_state: Saves and restores the run.
        folder: Folder of last.ckpt; None saves nothing.
    """
    by_default = (ModelCheckpoint, ModelSummary, AnyProgressBar)
    replaced = [c for c in callbacks if isinstance(c, by_default) and c not in asked_for]
    kept = [callback for callback in callbacks if callback not in replaced]
    first: list[Callback] = [run_state, StartSummary(), WritePredictions(), OutOfMemory()]
    if not any(isinstance(callback, ReferenceScores) for callback in kept):
        first.append(ReferenceScores())
    if any(isinstance(callback, AnyProgressBar) for callback in replaced):
        first.append(ProgressBar())  # the same bar whether or not `rich` happens to be installed
    checkpoints = [callback for callback in kept if isinstance(callback, Checkpoint)]
    others = [callback for callback in kept if callback not in checkpoints]
    # The stop comes last: it ends the run when all other callbacks have seen the batch.
    return [*first, *others, GracefulStop(folder), *checkpoints]
