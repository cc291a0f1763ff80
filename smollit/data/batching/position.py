"""The position of training in its data: counted in rows, so that a resumed run may have a different batch size."""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

from lightning.pytorch import Trainer

log = logging.getLogger(__name__)
State = dict[str, Any]


@dataclass
class Position:
    """A position between two batches.

    Args:
        epoch: Current epoch.
        rows: Rows of that epoch that are done, over all ranks: a row is an example, or a packed sequence.
        group: Global batch size that the epoch's order was made for, kept when a resumed run changes it; 0: the
            current one.
    """

    epoch: int = 0
    rows: int = 0
    group: int = 0

    def move(self, epoch: int, rows: int = 0, group: int = 0) -> None:
        """Move to another position; samplers that hold this object see it."""
        self.epoch, self.rows, self.group = epoch, rows, group


class TrainingBatches(Protocol):
    """The training batches of one rank, from a position on."""

    @property
    def epochs_differ(self) -> bool:
        """Whether epochs may have different numbers of batches."""

    @property
    def group(self) -> int:
        """Global batch size that the epoch's order is made for."""

    @property
    def global_batch_size(self) -> int:
        """Maximum number of rows per micro-batch over all ranks."""

    def num_batches(self, epoch: int) -> int | None:
        """Batches of a whole epoch; None for a stream."""

    def num_rows(self) -> int | None:
        """Rows of the current epoch; None for a stream."""

    def batches_before(self) -> int:
        """Batches of the epoch before the position."""

    def rows_after(self, num_batches: int) -> int:
        """Rows of the epoch that are done after so many batches from the position on."""


class TrainingPosition:
    """Where a pass through the training rows began, and how many of its batches were handed out.

    Batches that worker processes have prefetched do not count. The loader reports what it hands out, and a pass that
    follows another one is the next epoch.
    """

    def __init__(self) -> None:
        self.start = Position()
        self.handed_out = 0

    def begin(self, epoch: int) -> None:
        """Move to the start of an epoch."""
        self.start.move(epoch)
        self.handed_out = 0

    def begin_pass(self) -> None:
        """Record that a loader starts a pass."""
        if self.handed_out:
            self.begin(self.start.epoch + 1)

    def reached(self, batches: TrainingBatches, trainer: Trainer | None) -> Position:
        """The position after the batches that training has received."""
        fitting = trainer is not None and trainer.training
        is_last = fitting and trainer is not None and trainer.is_last_batch
        # Lightning fetches one batch ahead where it can't know the length.
        ahead = fitting and not is_last and batches.num_rows() is None
        done = self.handed_out - ahead
        if done <= 0:
            return self.start
        rows = batches.rows_after(done)
        if is_last or rows == batches.num_rows():
            return Position(self.start.epoch + 1)
        return Position(self.start.epoch, rows, batches.group)

    def settle(self, batches: TrainingBatches, trainer: Trainer | None) -> None:
        """Record that a new loader is made: within a run, its first pass begins at the current position."""
        if trainer is None or not trainer.training:
            self.handed_out = 0
            return
        reached = self.reached(batches, trainer)
        self.start.move(reached.epoch, reached.rows, reached.group)
        self.handed_out = 0

    def state(self, batches: TrainingBatches, trainer: Trainer | None) -> State:
        """The position as plain numbers, with the size of the data that it refers to."""
        reached = self.reached(batches, trainer)
        group = reached.group or batches.group if reached.rows else 0
        sizes = {"num_rows": batches.num_rows() or 0, "global_batch_size": batches.global_batch_size}
        return {"epoch": reached.epoch, "rows": reached.rows, "group": group, **sizes}

    def load(self, state: State, batches: TrainingBatches) -> None:
        """Move to the position in `state`, and log if the batch size has changed."""
        self.start.move(state["epoch"], state["rows"], state["group"])
        self.handed_out = 0
        size = batches.global_batch_size
        if size != state["global_batch_size"]:
            log.warning(
                "global_batch_size was %s, and is now %s: the run resumes at row %s",
                state["global_batch_size"],
                size,
                state["rows"],
            )
