"""RunState: a run that is stopped and resumed equals one that never stopped, to the bit."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.profilers import PassThroughProfiler, PyTorchProfiler
from torch import Tensor

from smollit.modules import FineTuningModule
from smollit.modules.lost_steps import LostSteps
from smollit.training.checkpoints.content import Content, check_content, content
from smollit.training.checkpoints.files import FOLDER
from smollit.training.checkpoints.lineage import RUN_STATE, Lineage, begin
from smollit.training.checkpoints.ranks import all_ranks, get_random_state, over_ranks, set_random_state
from smollit.training.checkpoints.settings import (
    Groups,
    apply_changes,
    check_groups,
    check_settings,
    configured,
    fixed_settings,
    plain_settings,
)
from smollit.training.early_stopping import Patience, still_ended, stopped_early
from smollit.training.steps import (
    Begun,
    accumulation,
    at_step_end,
    is_new_run,
    is_timed,
    limited,
    num_steps,
    positioned_data,
    refuse_fewer_steps,
    set_counters,
    training_batches,
)

log = logging.getLogger(__name__)
State = dict[str, Any]


class RunState(Callback):
    """Saves and restores what a run needs besides Lightning's own state: every rank's random state, the metrics that
    are pending for the next log, and the settings. The position in the data is in the data module's state.

    A checkpoint is always at the end of an optimizer step: micro-batches after it are repeated.

    Args:
        settings: The trainer's settings.
        force: Whether a resumed run may change settings and contents that change the meaning of the saved state.
    """

    def __init__(self, settings: State, *, force: bool = False) -> None:
        self.config: State = {"trainer": plain_settings(settings)}  # the command line adds those of model and data
        self.content: Content = {}  # hashes of rows, tokenizer and template
        self.force = force
        self.resumes = False  # whether this start begins with a checkpoint
        self.lineage = Lineage()  # of this start of the run
        self.ended: str | None = None  # why a callback ended the run that is resumed
        self.patience: Patience | None = None  # of a resumed run
        self.has_news = False  # a step, or a validation that was due, since this start of the run
        self.validation_is_due = False
        self.limits: tuple[int, int | None] | None = None  # max_steps and max_epochs, while they are raised
        self.begun = Begun()  # where this start of the run begins
        self.begins_step = True  # the next micro-batch is the first of an optimizer step
        # At the end of the last optimizer step:
        self.position: State | None = None
        self.batches = 0  # micro-batches of the epoch
        self.total_batches = 0
        self.random_state: State | None = None
        self.pending: dict[str, Tensor] = {}  # [total, count] of the training metrics
        self.optimizers: list[Groups] = []  # their settings, as configured
        self.optimizers_before: list[Groups] = []  # the same when the run began

    # ---- following the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.ended, self.has_news, self.begun, self.begins_step = None, False, Begun(), True
        self.validation_is_due, self.limits, self.patience = False, None, None
        self.position, self.batches, self.total_batches = None, 0, 0
        self.random_state, self.pending, self.optimizers, self.optimizers_before = None, {}, [], []
        self.content = content(trainer) if stage == "fit" else {}
        batches = training_batches(trainer) if stage == "fit" else None
        if batches is not None and batches.epochs_differ:
            # Lightning assumes that all epochs are as long as the first loader.
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        if stage == "fit" and not self.resumes and isinstance(pl_module, FineTuningModule):
            steps = num_steps(trainer, self.begun)
            if steps is not None:  # a warm-up that is too long is refused before models are loaded and files written
                pl_module.rates.set_steps(steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.optimizers = configured(trainer)
        check_groups(self.optimizers_before, self.optimizers)
        path = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        if path is not None or is_new_run(trainer):
            self.lineage = begin(path, Path(trainer.default_root_dir) / FOLDER)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore_limits(trainer)
        apply_changes(trainer, self.optimizers_before, self.optimizers)
        if self.patience is not None and not trainer.should_stop:
            self.patience.restore(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.begins_step:
            return
        # Lightning tells a GradientAccumulationScheduler of an epoch at its beginning, which a resumed run may not see.
        trainer.accumulate_grad_batches = accumulation(trainer, trainer.current_epoch)
        # Validation, callbacks and new loaders draw random numbers between steps, and a resumed run does not repeat
        # them: training continues from where its own last step ended.
        if self.random_state is None:
            self.random_state = get_random_state()
        else:
            set_random_state(self.random_state)
        self.begins_step = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if at_step_end(trainer):
            data = positioned_data(trainer)
            self.position = data.state_dict() if data else None
            self.batches, self.total_batches = batch_idx + 1, trainer.fit_loop.total_batch_idx + 1
            self.random_state = get_random_state()
            self.has_news = self.begins_step = True
            if isinstance(pl_module, FineTuningModule):
                self.pending = pl_module.pending_metrics()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore_limits(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        profiler: object = trainer.profiler  # type: ignore[attr-defined]
        if not isinstance(profiler, PyTorchProfiler) or not isinstance(profiler.profiler, torch.profiler.profile):
            return
        if profiler.profiler.profiler is None:  # it has recorded no step, and Lightning would assert that it has
            profiler.profiler = None
            trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]

    def restore_limits(self, trainer: Trainer) -> None:
        """Set `max_steps` and `max_epochs` back to what they were before `raise_limits`."""
        if self.limits is not None:
            trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.max_epochs = self.limits
            self.limits = None

    # ---- saving

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        checkpoint[RUN_STATE] = {
            "accumulate_grad_batches": accumulation(trainer, 0),
            "world_size": trainer.world_size,
            "random_states": all_ranks(self.random_state or get_random_state()),
            "pending": over_ranks(self.pending),
            "lost_steps": pl_module.lost_steps.state() if isinstance(pl_module, FineTuningModule) else {},
            "validation_is_due": self.validation_is_due,
            "warmup_starts_at_0": False,
            "optimizers": self.optimizers,
            "config": self.config,
            "content": self.content,
            "ended": stopped_early(trainer) if trainer.should_stop else None,
            "lineage": self.lineage.now(),
        }
        data = positioned_data(trainer)
        if data is None or not (position := self.position or data.state_dict()):
            return
        checkpoint[type(data).__qualname__] = position
        set_counters(checkpoint, position["epoch"], self.batches if position["rows"] else 0, self.total_batches)

    # ---- restoring

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        if trainer.state.fn != "fit":
            return
        state = checkpoint.get(RUN_STATE, {})
        check_settings(state.get("config", {}), self.config, fixed_settings(trainer), force=self.force)
        check_content(state.get("content", {}), self.content, force=self.force)
        for name, now in (
            ("accumulate_grad_batches", accumulation(trainer, 0)),
            ("world_size", trainer.world_size),
        ):
            if now != state.get(name, now):
                log.warning("%s was %s, and is now %s", name, state[name], now)
        self._load_position(trainer, checkpoint)
        self.ended, self.patience = still_ended(trainer, checkpoint, state.get("ended")), Patience(trainer)
        if self.ended and not self.force:
            trainer.should_stop = True
        if state.get("validation_is_due", False):
            self.validation_is_due, self.limits = True, raise_limits(trainer)
        self.optimizers_before = state.get("optimizers", [])
        check_groups(self.optimizers_before, self.optimizers)  # with FSDP, the optimizer exists already
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if "averaging_state" in checkpoint and not any(isinstance(each, WeightAveraging) for each in callbacks):
            log.warning("the run averaged its weights, and now has no such callback: the average is left out")
            pl_module.load_state_dict(checkpoint["current_model_state"])
        random_states = state.get("random_states", [])
        if trainer.global_rank < len(random_states):
            self.random_state = random_states[trainer.global_rank]
        if isinstance(pl_module, FineTuningModule):
            # Version 0.1 called them `unlogged`; before that there were none.
            pending = state.get("pending", state.get("unlogged", {}))
            pl_module.restore_pending_metrics(pending if trainer.is_global_zero else {})
            # Version 0.2 counted only one kind.
            lost = state.get("lost_steps", {"skipped": state.get("num_skipped_steps", 0)})
            pl_module.lost_steps = LostSteps(**lost)
            if state.get("warmup_starts_at_0", True) and not self.force:  # before version 0.3
                pl_module.rates.refuse_warming_up(checkpoint["global_step"])

    def _load_position(self, trainer: Trainer, checkpoint: State) -> None:
        data, batches = positioned_data(trainer), training_batches(trainer)
        if data is None or batches is None:
            return
        if type(data).__qualname__ not in checkpoint:  # Lightning has loaded it if present
            if "rows" not in checkpoint.get(RUN_STATE, {}):
                raise ValueError("this checkpoint holds no position in the data: it can't be resumed")
            data.load_state_dict(checkpoint[RUN_STATE])  # of version 0.1
        position = data.state_dict()
        done, whole = batches.batches_before(), batches.num_batches(position["epoch"]) or 0
        if whole and 0 < limited(whole, trainer.limit_train_batches) <= done:  # the limit was higher, or none
            data.load_state_dict(position | {"epoch": position["epoch"] + 1, "rows": 0, "group": 0})
            position, done = data.state_dict(), 0
        self.batches, self.total_batches = done, position["epoch"] * whole + done
        self.begun = Begun(checkpoint["global_step"], position["epoch"], done)
        refuse_fewer_steps(trainer, self.begun)
        set_counters(checkpoint, position["epoch"], done, self.total_batches)
        log.info("resumed in epoch %s, with %s of its rows done", position["epoch"], f"{position['rows']:,}")

    def why_ended(self, trainer: Trainer) -> str:
        """Why a resumed run makes no step."""
        if self.ended:
            return f"{self.ended} Set `trainer.force_resume: true`, or leave that callback out, to train on"
        if is_timed(trainer):
            return "`trainer.max_steps`, `max_epochs` or `max_time` asks for no more"
        return "`trainer.max_steps` or `max_epochs` asks for no more"


def raise_limits(trainer: Trainer) -> tuple[int, int | None]:
    """Let Lightning start training after the last step, whose validation is due; return `max_steps`, `max_epochs`."""
    loop = trainer.fit_loop
    limits = (loop.epoch_loop.max_steps, loop.max_epochs)
    loop.epoch_loop.max_steps += limits[0] != -1
    if loop.max_epochs is not None and loop.max_epochs != -1:
        loop.max_epochs += 1
    return limits
