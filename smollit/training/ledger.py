"""Ledger: what each row costs at each epoch, in <run folder>/ledger.parquet; no texts."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from smollit.data import ChatDataModule
from smollit.errors import first_line
from smollit.functional.rows import RowValues
from smollit.modules import FineTuningModule
from smollit.paths import reading, write_whole
from smollit.training.checkpoints.ranks import all_ranks
from smollit.training.checkpoints.saving import NotSavedError
from smollit.training.checkpoints.state import RunState
from smollit.training.steps import at_step_end, data_module, is_new_run

FILE = "ledger.parquet"
SCHEMA = pa.schema(
    {
        "split": pa.string(),  # train, val or val/<set>
        "row": pa.int64(),  # row number in the split; a row of several pairs has an entry for each
        "hash": pa.string(),  # of the row's text; null for rows that are streamed
        "epoch": pa.int32(),
        "step": pa.int64(),  # optimizer step that the row is part of, or after which it was validated
        "loss": pa.float32(),
        "weight": pa.float32(),  # loss tokens of a chat, weight of a pair
        "margin": pa.float32(),  # chosen reward minus rejected reward; null for chats
    }
)


class Entry(NamedTuple):
    """The rows of one micro-batch, on their device."""

    epoch: int
    step: int
    values: RowValues


class Ledger(Callback):
    """Keeps the loss of each training and validation row, and the margin of each pair, whenever the step computes it.

    The values are those of the step itself, under the weights before it, so they cost no forward pass. They stay on the
    device until a checkpoint is saved or training ends. The file is written before the checkpoint: a resumed run drops
    the entries of steps that it makes again.

    Args:
        run_state: Says whether the validation of the current step is made again.
    """

    def __init__(self, run_state: RunState) -> None:
        self.run_state = run_state
        self.entries: list[Entry] = []
        self.known = SCHEMA.empty_table()  # what the file holds, on rank 0

    # ---- collecting

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.entries, self.known = [], SCHEMA.empty_table()
        if is_new_run(trainer) and self.is_kept(trainer) and trainer.is_global_zero:
            path(trainer).unlink(missing_ok=True)  # of an earlier run in this folder, as its curves are

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_new_run(trainer) and trainer.is_global_zero:
            self.known = without_later(
                read_ledger(path(trainer)), trainer.global_step, validation_too=self.run_state.validation_is_due
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.note(trainer, pl_module, trainer.global_step + (0 if at_step_end(trainer) else 1))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not trainer.sanity_checking or trainer.num_sanity_val_steps == float("inf"):
            self.note(trainer, pl_module, trainer.global_step)

    def note(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Keep the values of the last micro-batch."""
        assert isinstance(module, FineTuningModule)
        if module.row_values is not None and self.is_kept(trainer):
            self.entries.append(Entry(trainer.current_epoch, step, module.row_values))
        module.row_values = None

    def is_kept(self, trainer: Trainer) -> bool:
        """Whether the run logs to files."""
        is_rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]
        return trainer.state.fn == "fit" and bool(trainer.loggers) and not is_rehearsal

    # ---- writing

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.flush(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flush(trainer)

    def flush(self, trainer: Trainer) -> None:
        """Write the entries of all ranks; every rank calls this at the same moments.

        Raises:
            NotSavedError: On all ranks, if the file can't be written.
        """
        if not self.is_kept(trainer):
            return
        of_ranks = [rank for rank in all_ranks(columns(self.entries)) if rank]
        self.entries = []
        failure = self.write(trainer, of_ranks) if trainer.is_global_zero and of_ranks else None
        # The first rank writes. The others end with it, instead of waiting for it in the next collective.
        failure = trainer.strategy.broadcast(failure)
        if failure:
            raise NotSavedError(f"{path(trainer)} could not be written ({failure}): make room, or remove what is there")

    def write(self, trainer: Trainer, of_ranks: list[dict[str, Any]]) -> str | None:
        """Add the entries of all ranks to the file; return what went wrong."""
        new = pa.concat_tables([pa.table(rank) for rank in of_ranks])
        new = with_hashes(new, data_module(trainer)).cast(SCHEMA)
        self.known = pa.concat_tables([self.known, new]).sort_by(
            [("step", "ascending"), ("split", "ascending"), ("row", "ascending")]
        )
        content = io.BytesIO()
        pq.write_table(self.known, content)
        try:
            write_whole(path(trainer), content.getvalue())
        except OSError as error:
            return error.strerror or first_line(error)
        return None


def path(trainer: Trainer) -> Path:
    """The ledger of a run."""
    return Path(trainer.default_root_dir) / FILE


def read_ledger(file: Path) -> pa.Table:
    """A ledger; an empty one if there is no file.

    Raises:
        ValueError: If the file is damaged.
    """
    with reading(file):
        return pq.read_table(file, schema=SCHEMA) if file.is_file() else SCHEMA.empty_table()


def columns(entries: list[Entry]) -> dict[str, Any]:
    """The entries of one rank as arrays; empty without entries."""
    if not entries:
        return {}
    values = [entry.values for entry in entries]
    sizes = [each.rows.numel() for each in values]
    margins = [each.margins for each in values if each.margins is not None]
    return {
        "split": np.repeat([each.stage for each in values], sizes).tolist(),
        "epoch": np.repeat([entry.epoch for entry in entries], sizes),
        "step": np.repeat([entry.step for entry in entries], sizes),
        "row": torch.cat([each.rows for each in values]).cpu().numpy(),
        "loss": as_floats([each.losses for each in values]),
        "weight": as_floats([each.weights for each in values]),
        "margin": as_floats(margins) if margins else np.full(sum(sizes), np.nan, np.float32),
    }


def as_floats(parts: list[Tensor]) -> NDArray[np.float32]:
    """The values of all parts, in one copy from the device."""
    found: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return found


def with_hashes(entries: pa.Table, data: object) -> pa.Table:
    """The entries with the hash of each row, where the data module knows its rows."""
    hashes = np.full(entries.num_rows, None, dtype=object)
    for split, examples in (data.examples if isinstance(data, ChatDataModule) else {}).items():
        chosen = pc.equal(entries["split"], split).to_numpy()
        hashes[chosen] = examples.hashes_of(entries["row"].to_numpy()[chosen])
    margins = entries["margin"].to_numpy()
    entries = entries.set_column(
        entries.column_names.index("margin"), "margin", pa.array(margins, pa.float32(), mask=np.isnan(margins))
    )
    return entries.append_column("hash", pa.array(hashes, pa.string())).select(SCHEMA.names)


def without_later(entries: pa.Table, step: int, *, validation_too: bool) -> pa.Table:
    """The entries up to a step; without its validation, if that is made again."""
    kept = pc.less_equal(entries["step"], step)
    if validation_too:
        is_again = pc.and_(pc.equal(entries["step"], step), pc.not_equal(entries["split"], "train"))
        kept = pc.and_(kept, pc.invert(is_again))
    return entries.filter(kept)
