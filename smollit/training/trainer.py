"""SmollitTrainer: Lightning's Trainer with run folders, exact resume, and intervals in optimizer steps."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from smollit.modules import FineTuningModule
from smollit.training.checkpoints.files import FOLDER, refuse_shards, resume_path
from smollit.training.checkpoints.folder import local_folder, run_folder
from smollit.training.checkpoints.periodic import savers
from smollit.training.checkpoints.saving import AtomicCheckpointIO
from smollit.training.checkpoints.state import RunState
from smollit.training.evaluation import EvaluatingTrainer
from smollit.training.logs.loggers import run_loggers
from smollit.training.logs.quiet import quiet
from smollit.training.memory.device import keep_freed_memory
from smollit.training.options import DEFAULT_ROOT, refuse_callbacks, trainer_options, with_built_in
from smollit.training.steps import num_steps
from smollit.training.stop import ctrl_c_exits
from smollit.training.validation import ValidateEverySteps, interval_in_batches

log = logging.getLogger(__name__)


class SmollitTrainer(EvaluatingTrainer):
    """Lightning's Trainer, for one run in one folder.

    With any LightningModule it does what Trainer does, with these exceptions:

    - `default_root_dir` is `runs/default` unless it is set;
    - `val_every_n_steps` and `checkpoint_every_n_steps` are intervals in optimizer steps;
    - checkpoint files are written atomically;
    - `strategy="fsdp"` reduces gradients in fp32 and saves unsharded checkpoints; `"fsdp2"` is data parallel FSDP2;
    - Lightning's advertisements and a few of its notes are not shown (see logs/quiet.py).

    A FineTuningModule also gets what every run of smollit promises:

    - TensorBoard events, metrics.csv and checkpoints are in the run folder itself, not in `lightning_logs/version_n`;
    - a checkpoint is at the end of an optimizer step, and a run that resumes from it equals one that never stopped, to
      the bit: it also holds random states, pending metrics, and the settings, which a resume compares;
    - SIGTERM, SIGHUP and Ctrl-C finish the optimizer step and save last.ckpt, as does the end of training;
    - only `ckpt_path` resumes, and `last` is the newest checkpoint in the run folder;
    - a start and an end summary, progress in steps of the run, predictions in a file, and advice when a run runs out
      of memory.

    A plain Trainer with a ChatDataModule resumes at the right batch too, since the position in the data is in the
    data module's state. It does not keep random states and pending metrics, loses the gradients of an unfinished
    accumulation window, and assumes that every epoch is as long as the first.

    Args:
        default_root_dir: The run folder: config.yaml, checkpoints/, TensorBoard events, exports.
        val_every_n_steps: Number of optimizer steps between validations, which also run after the last step; null
            follows Lightning's val_check_interval, which counts micro-batches.
        checkpoint_every_n_steps: Number of optimizer steps between checkpoints; null saves only at the end of training
            and at a stop.
        keep_checkpoints: Number of those to keep, besides last.ckpt and best.ckpt.
        keep_best: Metric by which the best validation's checkpoint is kept as best.ckpt, such as `val/loss`; `min:` or
            `max:` in front says what is better where the metric itself does not. null keeps none.
        force_resume: Allow a resumed run to change settings that change the meaning of its saved state.
        strategy: How the work is divided among devices: `auto`, `ddp`, `fsdp`, `fsdp2`, or a Strategy.
        callbacks: Callbacks besides the built-in ones.
        logger: Where metrics go besides metrics.csv: `tensorboard`, `csv`, `wandb`, `mlflow`, `comet`, any Logger by
            class_path, or a list of them; null and true log to TensorBoard in the run folder, false logs nothing.
        enable_checkpointing: false saves no checkpoints.
        enable_progress_bar: null shows a progress bar in a terminal or a notebook, and plain lines elsewhere; true
            shows the bar everywhere, false the lines.
        enable_model_summary: true adds Lightning's table of modules to the start summary.
        **options: All other options of Lightning's Trainer.
    """

    def __init__(
        self,
        default_root_dir: str | Path | None = DEFAULT_ROOT,
        *,
        val_every_n_steps: int | None = None,
        checkpoint_every_n_steps: int | None = None,
        keep_checkpoints: int = 2,
        keep_best: str | None = None,
        force_resume: bool = False,
        strategy: str | Strategy = "auto",
        callbacks: list[Callback] | Callback | None = None,
        logger: Logger | list[Logger] | bool | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        **options: Any,
    ) -> None:
        named: dict[str, Any] = {"logger": logger, "enable_checkpointing": enable_checkpointing}
        named |= {"enable_progress_bar": enable_progress_bar, "enable_model_summary": enable_model_summary}
        named |= {"strategy": None if strategy == "auto" else strategy}
        options = trainer_options(options, named, default_root_dir)
        own: dict[str, Any] = {"strategy": strategy, "val_every_n_steps": val_every_n_steps, "keep_best": keep_best}
        own |= {"checkpoint_every_n_steps": checkpoint_every_n_steps, "keep_checkpoints": keep_checkpoints}
        self.run_state = RunState(options | own, force=force_resume)
        self.checkpoint_folder = Path(options["default_root_dir"] or Path.cwd()) / FOLDER
        asked_for = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        if val_every_n_steps is not None:
            asked_for.append(ValidateEverySteps(val_every_n_steps))
            options |= interval_in_batches(val_every_n_steps, options)
        self._saves = options.get("enable_checkpointing") is not False
        if keep_checkpoints != 2 and (checkpoint_every_n_steps is None or not self._saves):
            raise ValueError(
                "`trainer.keep_checkpoints` has no effect without `checkpoint_every_n_steps`, or with"
                " `enable_checkpointing: false`: remove it"
            )
        if self._saves:
            asked_for += savers(
                self.checkpoint_folder, every_n_steps=checkpoint_every_n_steps, keep=keep_checkpoints, best=keep_best
            )
        with quiet():
            super().__init__(callbacks=[*asked_for], **options)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = AtomicCheckpointIO()
        self._by_default = [callback for callback in self.callbacks if callback not in asked_for]
        if options.get("enable_model_summary"):
            self._by_default = [callback for callback in self._by_default if not isinstance(callback, ModelSummary)]
        self._logs_to_root = options.get("logger") in (None, True)
        self._needs_bar = options.get("enable_progress_bar") is True
        self._is_prepared = self.barebones  # then nothing is added

    def prepare(self, model: LightningModule | None, *, resumes: bool = False) -> bool:
        """Add, once, the built-in callbacks and loggers of a FineTuningModule; return whether `model` is one.

        On a CPU, freed memory stays with the process from then on.
        """
        is_ours = super().prepare(model)
        if is_ours and isinstance(self.accelerator, CPUAccelerator):
            keep_freed_memory()
        if is_ours and not self._is_prepared:
            self._is_prepared = True
            local_folder(self.default_root_dir)
            if not self.fast_dev_run:  # type: ignore[attr-defined]
                root = Path(self.default_root_dir)
                self.loggers = run_loggers(self.loggers, root, by_default=self._logs_to_root, resumes=resumes)
            folder = self.checkpoint_folder if self._saves else None
            self.callbacks = with_built_in(
                self.callbacks, self._by_default, self.run_state, folder, needs_bar=self._needs_bar
            )
        return is_ours

    @contextmanager
    def _resumes_only_from(self, path: str | None) -> Iterator[None]:
        """Only `ckpt_path` resumes: Lightning also uses what OnExceptionCheckpoint and SLURM left in the folder.

        All hooks know it: given to Trainer.fit, a sharded strategy would set it after `on_fit_start`.
        """
        self.ckpt_path = path
        self._checkpoint_connector._user_managed = True
        try:
            yield
        finally:
            self._checkpoint_connector._user_managed = False

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any | None = None,
        val_dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train, or resume training.

        Args:
            model: The module to train.
            train_dataloaders: Batches, if there is no data module.
            val_dataloaders: Batches, if there is no data module.
            datamodule: Where batches come from.
            ckpt_path: A checkpoint to resume from; `last` takes the newest in the run folder, or starts a new run if
                there is none; null starts a new run.
            weights_only: false allows a checkpoint to execute code; smollit's checkpoints do not need it.
        """
        data = (train_dataloaders, val_dataloaders, datamodule)
        if not isinstance(model, FineTuningModule):
            return super().fit(model, *data, ckpt_path, weights_only)
        with run_folder(self, saves=self._saves):
            is_rehearsal = self.fast_dev_run and ckpt_path == "last"  # type: ignore[attr-defined]  # of a new run
            path = None if is_rehearsal else resume_path(ckpt_path, self.checkpoint_folder, self.callbacks)
            self.prepare(model, resumes=path is not None)
            self.run_state.resumes = model.restores_weights = path is not None
            refuse_callbacks(self.callbacks, path, self.strategy)
            refuse_shards(path, self.strategy)
            with quiet(), ctrl_c_exits(), self._resumes_only_from(path):
                super().fit(model, *data, weights_only=True if weights_only is None else weights_only)
        # The step is 0 where other processes trained; barebones leaves out the callback that sees news.
        if path is not None and self.global_step and not self.run_state.has_news and not self.barebones:
            model.lost_steps.refuse_nothing_trained(self.global_step)
            log.info("nothing to do: %s is at step %s, and %s", path, self.global_step, self.run_state.why_ended(self))
        return None

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole run; Lightning assumes that all epochs are as long as the first."""
        steps = num_steps(self, self.run_state.begun)
        return super().estimated_stepping_batches if steps is None else steps
