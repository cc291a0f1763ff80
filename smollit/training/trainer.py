"""SmollitTrainer: Lightning's Trainer with run folders, exact resume, and intervals in optimizer steps."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from smollit.training.checkpoint_io import (
    AtomicCheckpointIO,
    PeriodicCheckpoint,
    check_readable,
    check_resumable,
    latest_checkpoint,
)
from smollit.training.memory import keep_freed_memory
from smollit.training.out_of_memory import OutOfMemory
from smollit.training.position import num_steps
from smollit.training.predictions import WritePredictions
from smollit.training.progress import ProgressBar
from smollit.training.quiet import quiet
from smollit.training.schedule import ValidateEverySteps
from smollit.training.state import RunState
from smollit.training.stop import GracefulStop
from smollit.training.strategies import register
from smollit.training.summary import StartSummary

log = logging.getLogger(__name__)
register()


class SmollitTrainer(Trainer):
    """Lightning's Trainer for one run in one folder.

    What every run needs is built in code, so a config that replaces the list of callbacks can't lose it.

    Args:
        default_root_dir: The run's folder: config.yaml, checkpoints/, TensorBoard events, exports.
        val_every_n_steps: Validate every so many optimizer steps, and after the last; null follows Lightning's own
            val_check_interval, which counts micro-batches.
        checkpoint_every_n_steps: Save a checkpoint every so many optimizer steps; null saves only at the end of
            training and at a stop.
        keep_checkpoints: How many of those to keep, besides last.ckpt.
        force_resume: Let a resumed run change settings that give its saved state another meaning.
        callbacks: Callbacks besides the built-in ones.
        logger: true logs to TensorBoard in the run's folder; false logs nothing.
        enable_checkpointing: false saves no checkpoints at all.
        use_distributed_sampler: Leave this false: the data module deals rows out to the devices itself.
        enable_model_summary: true adds Lightning's table of modules to our own summary.
        **options: All other options of Lightning's Trainer.
    """

    def __init__(
        self,
        default_root_dir: str = "runs/default",
        val_every_n_steps: int | None = None,
        checkpoint_every_n_steps: int | None = None,
        keep_checkpoints: int = 2,
        force_resume: bool = False,
        callbacks: list[Callback] | Callback | None = None,
        logger: Any = True,
        enable_checkpointing: bool = True,
        use_distributed_sampler: bool = False,
        enable_model_summary: bool = False,
        **options: Any,
    ) -> None:
        quiet()
        root = Path(default_root_dir)
        self.run_state = RunState()
        self.run_state.force = force_resume
        self.checkpoint_folder = root / "checkpoints"
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        built_in: list[Callback] = [self.run_state, StartSummary(), WritePredictions(), OutOfMemory()]
        if val_every_n_steps is not None:
            built_in.append(ValidateEverySteps(val_every_n_steps))
        if enable_checkpointing and checkpoint_every_n_steps is not None:
            built_in.append(PeriodicCheckpoint(self.checkpoint_folder, checkpoint_every_n_steps, keep_checkpoints))
        if options.get("enable_progress_bar") is not False and not any(isinstance(c, AnyProgressBar) for c in given):
            built_in.append(ProgressBar())  # the same bar whether or not `rich` happens to be installed
        if logger is True:
            logger = TensorBoardLogger(save_dir=str(root), name="", version="", default_hp_metric=False)
        super().__init__(
            default_root_dir=str(root),
            # The stop is asked last: it leaves the run when all others have seen the batch.
            callbacks=[*built_in, *given, GracefulStop(self.checkpoint_folder if enable_checkpointing else None)],
            logger=logger,
            enable_checkpointing=enable_checkpointing and any(isinstance(c, Checkpoint) for c in built_in + given),
            enable_model_summary=enable_model_summary,
            use_distributed_sampler=use_distributed_sampler,
            **options,
        )
        if self.strategy._checkpoint_io is None:  # the user gave none of their own
            self.strategy.checkpoint_io = AtomicCheckpointIO()

    def fit(  # type: ignore[override]
        self,
        model: LightningModule,
        train_dataloaders: Any | None = None,
        val_dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Train, or go on training.

        Args:
            model: What to train.
            train_dataloaders: Batches, if there is no data module.
            val_dataloaders: Batches, if there is no data module.
            datamodule: Where batches come from.
            ckpt_path: A checkpoint to resume from; `last` takes the newest of the run's folder, or starts if there is
                none; null starts anew.
        """
        newest = latest_checkpoint(self.checkpoint_folder)
        if ckpt_path == "last":
            ckpt_path = str(newest) if newest else None
        if ckpt_path is not None:
            check_resumable(ckpt_path)
        elif newest is not None:
            log.warning("%s holds checkpoints of an earlier run: a new run replaces them", self.checkpoint_folder)
        # Lightning goes on by itself from what some callbacks and SLURM left behind: here only `ckpt_path` resumes.
        self._checkpoint_connector._user_managed = ckpt_path is None
        if isinstance(self.accelerator, CPUAccelerator):
            keep_freed_memory()
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, True)
        self._checkpoint_connector._user_managed = False
        if ckpt_path is not None and not self.run_state.has_trained:
            log.info(
                "nothing to do: %s is at step %s, and `trainer.max_steps` or `max_epochs` asks for no more",
                ckpt_path,
                self.global_step,
            )

    def validate(  # type: ignore[override]
        self,
        model: LightningModule,
        dataloaders: Any | None = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
    ) -> Any:
        """Measure the validation split.

        Args:
            model: What to measure.
            dataloaders: Batches, if there is no data module.
            ckpt_path: A checkpoint to measure; `last` takes the newest of the run's folder; null the model as it is.
            verbose: Print the figures.
            datamodule: Where batches come from.
        """
        return super().validate(model, dataloaders, self.find_checkpoint(ckpt_path), verbose, datamodule, True)

    def test(  # type: ignore[override]
        self,
        model: LightningModule,
        dataloaders: Any | None = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
    ) -> Any:
        """Measure the test split.

        Args:
            model: What to measure.
            dataloaders: Batches, if there is no data module.
            ckpt_path: A checkpoint to measure; `last` takes the newest of the run's folder; null the model as it is.
            verbose: Print the figures.
            datamodule: Where batches come from.
        """
        return super().test(model, dataloaders, self.find_checkpoint(ckpt_path), verbose, datamodule, True)

    def predict(  # type: ignore[override]
        self,
        model: LightningModule,
        dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | None = None,
    ) -> Any:
        """Answer the prompts of a split.

        Args:
            model: What answers.
            dataloaders: Batches, if there is no data module.
            datamodule: Where batches come from.
            return_predictions: Return the answers, from Python.
            ckpt_path: A checkpoint that answers; `last` takes the newest of the run's folder; null the model as it is.
        """
        path = self.find_checkpoint(ckpt_path)
        return super().predict(model, dataloaders, datamodule, return_predictions, path, True)

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole run; Lightning takes all epochs for as long as the first."""
        steps = num_steps(self)
        return super().estimated_stepping_batches if steps is None else steps

    def find_checkpoint(self, ckpt_path: str | None) -> str | None:
        """The file that `ckpt_path` means, or None for the model as it is.

        Raises:
            ValueError: If it is missing or can't be read, or is `last` and the run has none.
        """
        if ckpt_path == "last":
            newest = latest_checkpoint(self.checkpoint_folder)
            if newest is None:
                raise ValueError(
                    f"there is no checkpoint in {self.checkpoint_folder}: train first, or set `ckpt_path` to a file,"
                    " or to null for the model as it is"
                )
            ckpt_path = str(newest)
        if ckpt_path is not None:
            check_readable(ckpt_path)
        return ckpt_path
