"""Curves: each step once in the files of the loggers, over stops, kills and resumes."""

import io
import logging
import os
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from smollit.modules import FineTuningModule
from smollit.modules.stage_metrics import StageMetricsModule
from smollit.paths import write_whole
from smollit.training.checkpoints.files import FOLDER, latest_checkpoint
from smollit.training.checkpoints.lineage import lineage_of
from smollit.training.checkpoints.state import RunState
from smollit.training.logs.loggers import note_versions
from smollit.training.logs.table import read_table, use_table
from smollit.training.steps import is_new_run

log = logging.getLogger(__name__)
VALIDATION = re.compile(r"(?:^|-)val/")  # a logger may have a prefix


class Curves(Callback):
    """Removes what the loggers' files hold of steps that this start makes again, and leaves no empty files.

    Args:
        run_state: Says whether the validation of the current step is made again.
    """

    def __init__(self, run_state: RunState) -> None:
        self.run_state = run_state
        self.set_aside: list[Logger] = []  # while `validate` or `test` repeats what they have

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            # An earlier start of this trainer has closed its writer, and may have removed its file.
            if isinstance(logger, TensorBoardLogger) and logger.experiment.file_writer is None:
                logger._experiment = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_new_run(trainer) and trainer.is_global_zero:  # before the validation of step 0
            forget_after(trainer, -1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if trainer.ckpt_path is not None:
                say_repeated(trainer, trainer.global_step)
                forget_after(trainer, trainer.global_step, validation_too=self.run_state.validation_is_due)
            note_versions(Path(trainer.default_root_dir), trainer.loggers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Before a checkpoint is saved: a run that is killed after the save does not make the step again.
        assert isinstance(pl_module, FineTuningModule)
        pl_module.log_step(batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" and (is_of_another_run(trainer) or is_logged(trainer, pl_module, "val/")):
            self.set_aside, trainer.loggers = trainer.loggers, []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_of_another_run(trainer) or is_logged(trainer, pl_module, "test/"):
            self.set_aside, trainer.loggers = trainer.loggers, []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.set_aside:
            self.set_aside, trainer.loggers = [], self.set_aside
        self.leave_no_empty_files(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.leave_no_empty_files(trainer)

    def leave_no_empty_files(self, trainer: Trainer) -> None:
        """Remove the event files of this process that hold no point."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
                remove_empty(Path(logger.log_dir))


def is_of_another_run(trainer: Trainer) -> bool:
    """Whether the checkpoint that is measured is none of the run in this folder: its values are only shown."""
    newest = latest_checkpoint(Path(trainer.default_root_dir) / FOLDER) if trainer.ckpt_path else None
    ours, measured = (lineage_of(Path(path)) for path in (newest or "", trainer.ckpt_path or ""))
    return ours is not None and measured is not None and ours.run != measured.run


def is_logged(trainer: Trainer, module: LightningModule, prefix: str) -> bool:
    """Whether the run's table has metrics of a stage at the step that is evaluated: then they are only shown."""
    assert isinstance(module, StageMetricsModule)
    tables = [use_table(logger) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    rows = [row for table in tables for row in read_table(table.path) if row["step"] == str(module.step_of_weights)]
    return any(name.startswith(prefix) and value for row in rows for name, value in row.items())


def say_repeated(trainer: Trainer, step: int) -> None:
    """Name the loggers that get the points of later steps again: nothing takes them back there."""
    tables = [use_table(logger) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    last = max((int(row["step"]) for table in tables for row in read_table(table.path)), default=0)
    others = [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger | TensorBoardLogger)]
    if others and last > step:
        log.warning(
            "%s: the points of steps %s to %s will stand there twice, since these steps are made again, and what was"
            " sent can't be taken back; metrics.csv has each step once",
            ", ".join(type(logger).__name__ for logger in others),
            step + 1,
            last,
        )


def forget_after(trainer: Trainer, step: int, *, validation_too: bool = False) -> None:
    """Remove all points after a step from the files of the loggers, and the step's validation if requested.

    A table merges what is logged of a step again.
    """
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            use_table(logger).forget_after(step)
        elif isinstance(logger, TensorBoardLogger):
            for path in event_files(Path(logger.log_dir)):
                forget_events(path, step, validation_too=validation_too)
            # A TensorBoard that has read the files already drops its points at this event.
            start = Event(session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(start, step + 1)


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files in a folder."""
    return sorted(folder.glob("events.out.tfevents.*"))


def forget_events(path: Path, step: int, *, validation_too: bool = False) -> None:
    """Remove the events of later steps from a file; a file that is left without any is removed."""
    events = list(LegacyEventFileLoader(str(path)).Load())
    kept = [event for event in events if event.HasField("file_version") or event.step <= step]
    if validation_too:
        kept = [event for event in kept if event.step < step or not is_validation(event)]
    if len(kept) == len(events):
        return
    if not any(map(is_point, kept)):
        path.unlink()
        return
    written = io.BytesIO()
    writer = RecordWriter(written)
    for event in kept:
        writer.write(event.SerializeToString())
    write_whole(path, written.getvalue())


def remove_empty(folder: Path) -> None:
    """Remove the event files of this process that hold no point."""
    for path in folder.glob(f"events.out.tfevents.*.{os.getpid()}.*"):
        if not any(map(is_point, LegacyEventFileLoader(str(path)).Load())):
            path.unlink()


def is_validation(event: Event) -> bool:
    """Whether an event holds a value of a validation, under its own name or in the group of the key metrics."""
    tags = [value.tag for value in event.summary.value]
    return any(VALIDATION.search(tag) or (tag.startswith("key_metrics/") and tag.endswith("_val")) for tag in tags)


def is_point(event: Event) -> bool:
    """Whether an event holds a value, a text or a picture."""
    return bool(event.HasField("summary"))
