"""NonFiniteDump: what is known of a step that is not finite, written to non_finite.json when it ends the run."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.batch import Batch
from smollit.modules.lost_steps import NonFiniteStepError
from smollit.paths import read_mapping, write_whole
from smollit.training.checkpoints.ranks import all_ranks
from smollit.training.checkpoints.state import RunState
from smollit.training.logs.environment import describe
from smollit.training.steps import at_step_end

log = logging.getLogger(__name__)
FILE = "non_finite.json"
Dump = dict[str, Any]


class NonFiniteDump(Callback):
    """Writes the step, the rows of all ranks, settings and versions; of the rows their numbers and hashes, no text.

    Args:
        run_state: Holds the settings of the run, and the hashes of its contents.
    """

    def __init__(self, run_state: RunState) -> None:
        self.run_state = run_state
        self.batches: list[Batch] = []  # of the optimizer step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if at_step_end(trainer):
            self.batches.clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the file, if the step is why the run ends: then all ranks end with the same error."""
        if not isinstance(exception, NonFiniteStepError) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        ranks = all_ranks({"rows": rows_of(self.batches)})
        if not trainer.is_global_zero:
            return
        dump = {
            **numbers({name: value for name, value in asdict(exception.bad).items() if name != "rows"}),
            "error": str(exception),
            "rows": [{"rank": rank, **row} for rank, found in enumerate(ranks) for row in found["rows"]],
            "settings": self.run_state.config,
            "content": self.run_state.content,
            "environment": describe(trainer),
        }
        folder = Path(trainer.default_root_dir)
        write_whole(folder / FILE, json.dumps(dump, indent=2) + "\n")
        log.error("%s has the step's rows and settings: python -m smollit replay %s", folder / FILE, folder)


def rows_of(batches: list[Batch]) -> list[Dump]:
    """Micro-batch, row number, and hash of each example."""
    return [
        {"micro_batch": index, "row": row, "sha256": digest(batch.example(position))}
        for index, batch in enumerate(batches)
        for position, row in enumerate(batch.example_ids.tolist())
    ]


def digest(example: Batch) -> str:
    """A hash of an example's token ids and labels."""
    return hashlib.sha256(json.dumps([example.input_ids.tolist(), example.labels.tolist()]).encode()).hexdigest()[:32]


def numbers(named: Mapping[str, Any]) -> Dump:
    """The same values for JSON, which has no NaN and no infinity: such numbers become texts."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in named.items()
    }


def read_dump(folder: Path) -> Dump | None:
    """The dump of a run folder, or None."""
    return read_mapping(folder / FILE) or None
