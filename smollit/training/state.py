"""RunState: a run that is stopped and started again does the same as one that never stopped, to the bit."""

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from smollit.data import ChatDataModule
from smollit.losses.settings import upgraded
from smollit.modules import FineTuningModule
from smollit.training.optimizers import Groups, apply_changes, configured
from smollit.training.position import (
    at_step_end,
    begin_again,
    follow_length,
    global_batch_size,
    num_batches,
    num_examples,
    order_group,
    rows_after,
    set_progress,
)
from smollit.training.random_state import all_ranks, get_random_state, set_random_state

log = logging.getLogger(__name__)
KEY = "run_state"
State = dict[str, Any]
# Settings that give the saved state another meaning: a resumed run may not change them, nor those that the data module
# names in `token_settings` and `order_settings`.
FIXED = (
    "model.class_path",
    "model.init_args.model_name",
    "model.init_args.reference_name",
    "model.init_args.optimizer.class_path",
    "data.class_path",
)


class RunState(Callback):
    """Saves and restores the position in the data (in rows), every rank's random state, what is counted for the next
    log, and the settings.

    A checkpoint always stands at the end of an optimizer step: micro-batches behind it are done again. A finished
    epoch is kept as the start of the next one.
    """

    def __init__(self, force: bool = False) -> None:
        self.config: State = {}
        self.force = force
        self.ended: str | None = None  # why a callback ended the run that is resumed
        self.epoch = 0
        self.rows = 0  # of this epoch, up to the last optimizer step, over all ranks
        self.batches = 0  # the same in micro-batches
        self.first_batch = 0  # micro-batches that were done when this pass through the data began
        self.total_batches = 0
        self.has_trained = False  # since this start of the run
        self.begins_step = True  # the next micro-batch is the first of an optimizer step
        self.random_state: State | None = None  # at the end of the last optimizer step
        self.unlogged: dict[str, Tensor] = {}  # [total, count] of the training metrics, at the same time
        self.optimizers: list[Groups] = []  # their settings, as configured
        self.optimizers_before: list[Groups] = []  # the same when the run began

    # ---- following the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.epoch, self.rows, self.batches, self.total_batches = trainer.current_epoch, 0, 0, 0
        self.has_trained, self.begins_step, self.random_state = False, True, None
        self.unlogged, self.optimizers_before, self.ended = {}, [], None
        self._set_position(trainer, self.epoch, 0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.optimizers = configured(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        apply_changes(trainer, self.optimizers_before, self.optimizers)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        self.epoch, self.batches = trainer.current_epoch, progress.current.completed
        self.first_batch = self.batches
        self.total_batches = progress.total.completed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        follow_length(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.begins_step:
            return
        # Validation, callbacks and new loaders draw random numbers between steps, and a resumed run does not repeat
        # them: training goes on from where its own last step ended.
        if self.random_state is None:
            self.random_state = get_random_state()
        else:
            set_random_state(self.random_state)
        self.begins_step = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if at_step_end(trainer):
            # Counted from where a resume began: the rows before it may have come in batches of another size.
            self.rows = rows_after(trainer, batch_idx + 1 - self.first_batch)
            self.batches = batch_idx + 1
            self.total_batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            self.random_state = get_random_state()
            self.has_trained = self.begins_step = True
            if isinstance(pl_module, FineTuningModule):
                self.unlogged = pl_module.pending_metrics()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_epoch_done(trainer):  # else max_steps or a callback ended it early
            self.epoch, self.rows, self.batches, self.first_batch = trainer.current_epoch + 1, 0, 0, 0
            self._set_position(trainer, self.epoch, 0)

    def _is_epoch_done(self, trainer: Trainer) -> bool:
        """Whether the last optimizer step was the epoch's last; a stream only says so when it has ended."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        has_ended = progress.is_last_batch and self.batches == progress.current.ready
        return has_ended or self.batches >= trainer.num_training_batches

    # ---- saving

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        epoch, rows, batches = self.epoch, self.rows, self.batches
        if self._is_epoch_done(trainer):
            epoch, rows, batches = epoch + 1, 0, 0
        checkpoint[KEY] = {
            "epoch": epoch,
            "rows": rows,
            "group": order_group(trainer) if rows else 0,
            "num_rows": num_examples(trainer),
            "global_batch_size": global_batch_size(trainer),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "world_size": trainer.world_size,
            "random_states": all_ranks(self.random_state or get_random_state()),
            "unlogged": over_ranks(self.unlogged),
            "num_skipped_steps": getattr(pl_module, "num_skipped_steps", 0),
            "optimizers": self.optimizers,
            "config": self.config,
            "ended": stopped_early(trainer) if trainer.should_stop else None,
        }
        set_progress(checkpoint, epoch, batches, self.total_batches)

    # ---- restoring

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        if trainer.state.fn != "fit":
            return
        state = checkpoint.get(KEY)
        if state is None:
            raise ValueError("this checkpoint was not written by a smollit run: its position in the data is unknown")
        self._check_config(state["config"], fixed_settings(trainer))
        num_rows, rows = num_examples(trainer), state["rows"]
        if num_rows != state["num_rows"]:
            raise ValueError(
                f"the run began on {state['num_rows']:,} training rows, and the data now has {num_rows:,}: going on"
                " would see some rows twice and others never. Give the same data, or start a new run"
            )
        size = global_batch_size(trainer)
        for name, now in (
            ("global_batch_size", size),
            ("accumulate_grad_batches", trainer.accumulate_grad_batches),
            ("world_size", trainer.world_size),
        ):
            if now != state[name]:
                log.warning("%s was %s, and is now %s: the run goes on at row %s", name, state[name], now, rows)
        self._set_position(trainer, state["epoch"], rows, state["group"])
        begin_again(trainer)
        whole, left = num_batches(trainer, 0), num_batches(trainer, rows)
        set_progress(checkpoint, state["epoch"], whole - left, state["epoch"] * whole + whole - left)
        self.ended = still_ended(trainer, state.get("ended"))
        if self.ended and not self.force:
            trainer.should_stop = True
        self.rows = rows
        self.optimizers_before = state["optimizers"]
        if trainer.global_rank < len(state["random_states"]):
            self.random_state = state["random_states"][trainer.global_rank]
        if isinstance(pl_module, FineTuningModule):
            # Checkpoints of earlier versions have neither.
            pl_module.restore_pending_metrics(state.get("unlogged", {}) if trainer.is_global_zero else {})
            pl_module.num_skipped_steps = state.get("num_skipped_steps", 0)
        log.info("resumed in epoch %s, with %s of its rows done", state["epoch"], f"{rows:,}")

    def why_ended(self, trainer: Trainer) -> str:
        """Why a resumed run makes no step."""
        if self.ended:
            return f"{self.ended} Set `trainer.force_resume: true`, or leave that callback out, to train on"
        return "`trainer.max_steps` or `max_epochs` asks for no more"

    def _check_config(self, saved: State, never: tuple[str, ...]) -> None:
        before, now = flatten(upgraded(saved)), flatten(self.config)
        changed = {key: (before.get(key), now.get(key)) for key in before | now if before.get(key) != now.get(key)}
        if not before or not now or not changed:
            return
        lines = [f"  {key}: {old!r} -> {new!r}" for key, (old, new) in sorted(changed.items())]
        log.warning("settings that differ from those the run began with:\n%s", "\n".join(lines))
        fixed = [key for key in changed if f"{key}.".startswith(tuple(f"{name}." for name in never))]
        if fixed and not self.force:
            raise ValueError(
                f"a resumed run can't change {', '.join(fixed)}:\n" + "\n".join(lines) + "\nStart a new run in another"
                " `trainer.default_root_dir`, or set `trainer.force_resume: true` if you know that they are the same"
            )

    def _set_position(self, trainer: Trainer, epoch: int, rows: int, group: int = 0) -> None:
        position = getattr(trainer.datamodule, "position", None)  # type: ignore[attr-defined]
        if position is not None:
            position.epoch, position.rows, position.group = epoch, rows, group


def fixed_settings(trainer: Trainer) -> tuple[str, ...]:
    """Settings that a resumed run may not change."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    names = (*data.token_settings, *data.order_settings) if isinstance(data, ChatDataModule) else ()
    return (*FIXED, *(f"data.init_args.{name}" for name in names))


def stopped_early(trainer: Trainer) -> dict[str, str] | None:
    """The EarlyStopping that ended the run, by its state key, and its reason; None if it was something else."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return {"by": callback.state_key, "why": callback.stopping_reason_message}
    return None


def still_ended(trainer: Trainer, ended: dict[str, str] | None) -> str | None:
    """Why the run stays ended: the callback that ended it is there again."""
    keys = [callback.state_key for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return f"EarlyStopping ended the run: {ended['why']}" if ended and ended["by"] in keys else None


def over_ranks(sums: dict[str, Tensor]) -> dict[str, list[float]]:
    """Sums over all ranks, as plain numbers."""
    ranks = all_ranks({name: pair.tolist() for name, pair in sums.items()})
    return {name: [sum(rank[name][place] for rank in ranks) for place in (0, 1)] for name in sums}


def flatten(config: State, prefix: str = "") -> State:
    """Nested settings -> {"model.init_args.beta": 0.1, ...}."""
    flat: State = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
