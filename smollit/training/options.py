"""Options of the trainer: strategies by name, defaults from the environment, and the built-in callbacks."""

import inspect
import os
from ast import literal_eval
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Checkpoint,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import MixedPrecision

from smollit.models.sharding import unsynchronized
from smollit.training.checkpoints.files import check_readable
from smollit.training.checkpoints.folder import local_folder
from smollit.training.checkpoints.lineage import RUN_STATE
from smollit.training.checkpoints.state import RunState
from smollit.training.ledger import Ledger
from smollit.training.logs.curves import Curves
from smollit.training.logs.dashboard import Dashboard
from smollit.training.logs.end_summary import EndSummary
from smollit.training.logs.environment import Environment
from smollit.training.logs.non_finite import NonFiniteDump
from smollit.training.logs.progress import ProgressBar, ProgressLines, is_interactive
from smollit.training.logs.start_summary import StartSummary
from smollit.training.memory.advice import OutOfMemory
from smollit.training.memory.budget import BatchTokens
from smollit.training.predictions import WritePredictions
from smollit.training.scores.difficulty import InstructionDifficulty
from smollit.training.scores.reference import ReferenceScores
from smollit.training.stop import GracefulStop, RefuseNothingTrained, SaveAtEnd
from smollit.training.validation import DueValidation


class ShardedStrategy(FSDPStrategy):
    """FSDP with unsharded checkpoints, and gradients reduced in fp32: a sum of many small terms."""

    strategy_name = "fsdp"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"state_dict_type": "full", **options})

    @property
    def mixed_precision_config(self) -> MixedPrecision | None:
        """The trainer's precision, but sums over ranks, rotary frequencies and the numbers of a batch in fp32."""
        config = super().mixed_precision_config
        if config is None:
            return None
        return replace(config, reduce_dtype=torch.float32, buffer_dtype=torch.float32, cast_root_forward_inputs=False)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Reduce gradients once per optimizer step; Lightning does so for DDP alone."""
        assert self.lightning_module is not None
        with unsynchronized(self.lightning_module):
            yield


class Sharded2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes: data parallel, with unsharded checkpoints. Runs on the CPU too."""

    strategy_name = "fsdp2"

    def __init__(self, save_distributed_checkpoint: bool = False, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **options)

    def setup_environment(self) -> None:
        """One data-parallel mesh over all processes; Lightning's default is tensor parallelism inside a node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Reduce gradients once per optimizer step; Lightning does so for DDP alone."""
        assert self.lightning_module is not None
        with unsynchronized(self.lightning_module):
            yield


BY_NAME: dict[str, type[Strategy]] = {"fsdp": ShardedStrategy, "fsdp2": Sharded2Strategy}
DEFAULT_ROOT = "runs/default"
# Lightning's callbacks that look at the weights in `setup`, before the model is loaded; and what to do instead.
TOO_EARLY: dict[type[Callback], str] = {
    StochasticWeightAveraging: "would average nothing: use EMAWeightAveraging or WeightAveraging",
    ModelPruning: "would prune nothing: prune the exported model",
    BaseFinetuning: "finds nothing to freeze: set `model.adapter`, or `model.learning_rate_factors` for slower weights",
}
# Callbacks that search a setting when a run begins: they restart a resumed run at step 0, with the weights it has.
SEARCHES: dict[type[Callback], str] = {
    LearningRateFinder: "model.learning_rate",
    BatchSizeFinder: "data.train_batch_size",
}


def trainer_options(options: dict[str, Any], named: dict[str, Any], root: str | Path | None) -> dict[str, Any]:
    """Lightning's arguments: from the environment, then `options`, then those of `named` that are not None.

    Args:
        options: Arguments that only Lightning's Trainer has.
        named: Arguments that both trainers have.
        root: The run folder.
    """
    found = from_environment() | options | {name: value for name, value in named.items() if value is not None}
    accumulation = found.get("accumulate_grad_batches")
    if isinstance(accumulation, int) and accumulation < 1:
        raise ValueError(f"`trainer.accumulate_grad_batches` must be at least 1, got {accumulation}")
    strategy = found.get("strategy", "auto")
    found["strategy"] = BY_NAME[strategy]() if isinstance(strategy, str) and strategy in BY_NAME else strategy
    if root != DEFAULT_ROOT or "default_root_dir" not in found:
        found["default_root_dir"] = str(local_folder(root)) if root is not None else None
    return found


def refuse_callbacks(callbacks: Sequence[Callback], resumed: str | None, strategy: Strategy) -> None:
    """Refuse callbacks of Lightning that would have no effect, fail, or spoil a resumed run.

    Args:
        callbacks: The callbacks of a run.
        resumed: The checkpoint that the run resumes from; None for a new run.
        strategy: The strategy of the run.

    Raises:
        ValueError: Names the callback, and what to do instead.
    """
    for callback in callbacks:
        name = f"`trainer.callbacks`: {type(callback).__name__}"
        if isinstance(callback, WeightAveraging) and isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
            raise ValueError(f"{name} copies the whole model, which this strategy shards: set `trainer.strategy: ddp`")
        for kind, why in TOO_EARLY.items():
            if isinstance(callback, kind):
                raise ValueError(f"{name} looks at the weights before smollit loads them, and {why}")
        for kind, setting in SEARCHES.items():
            if resumed is not None and isinstance(callback, kind):
                raise ValueError(
                    f"{name} would search `{setting}` again, and lose the position of {resumed}: leave it out, and set"
                    f" `{setting}` to {found_before(resumed, setting)}, which it found"
                )


def found_before(checkpoint: str, setting: str) -> float | int:
    """What a search found when the run began, from its checkpoint."""
    saved = check_readable(checkpoint)
    if setting == "model.learning_rate":
        return float(saved["hyper_parameters"]["learning_rate"])
    (position,) = [state for state in saved.values() if isinstance(state, dict) and "global_batch_size" in state]
    return int(position["global_batch_size"]) // int(saved[RUN_STATE]["world_size"])


def from_environment() -> dict[str, Any]:
    """Trainer's arguments from PL_TRAINER_<ARGUMENT>: Lightning looks for the name of the class, which is ours."""
    found: dict[str, Any] = {}
    for name in inspect.signature(Trainer).parameters:
        value = os.environ.get(f"PL_TRAINER_{name.upper()}")
        if value:
            found[name] = value
            with suppress(ValueError, SyntaxError):
                found[name] = literal_eval(value)
    return found


def with_built_in(
    callbacks: Sequence[Callback],
    by_default: Sequence[Callback],
    run_state: RunState,
    folder: Path | None,
    *,
    needs_bar: bool = False,
) -> list[Callback]:
    """The callbacks of a run, in their order.

    Args:
        callbacks: The trainer's callbacks.
        by_default: Those of them that Lightning has added; smollit's replace its checkpoints, summary and bar.
        run_state: Saves and restores the run.
        folder: Folder of last.ckpt; None saves nothing.
        needs_bar: Draw the progress bar into files and pipes too.
    """
    replaced = [each for each in by_default if isinstance(each, ModelCheckpoint | ModelSummary | AnyProgressBar)]
    kept = [callback for callback in callbacks if callback not in replaced]
    stop = GracefulStop(folder)
    scorers: tuple[Callback, ...] = (ReferenceScores(), InstructionDifficulty())
    scores = [next((given for given in kept if isinstance(given, type(ours))), ours) for ours in scorers]
    first: list[Callback] = [
        *scores,  # before all that counts rows: they may be selected by these scores
        RefuseNothingTrained(),
        run_state,
        SaveAtEnd(stop),
        Curves(run_state),
        Ledger(run_state),
        Dashboard(),
        StartSummary(),
        Environment(),
        NonFiniteDump(run_state),
        WritePredictions(),
        OutOfMemory(),
        BatchTokens(run_state),
    ]
    if any(isinstance(callback, AnyProgressBar) for callback in replaced) and (needs_bar or is_interactive()):
        first.append(ProgressBar())  # the same bar whether or not `rich` happens to be installed
    first.append(ProgressLines())
    checkpoints = [callback for callback in kept if isinstance(callback, Checkpoint)]
    others = [callback for callback in kept if callback not in (*checkpoints, *scores)]
    # The stop comes last: it ends the run when all other callbacks have seen the batch.
    return [*first, *others, EndSummary(), DueValidation(run_state), stop, *checkpoints]
