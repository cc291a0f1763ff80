"""RunState: a run that is stopped and started again does the same as one that never stopped, to the bit."""

import logging
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.training.optimizers import Groups, apply_changes, configured

log = logging.getLogger(__name__)
KEY = "run_state"
State = dict[str, Any]
# Settings that give the saved state another meaning: a resumed run may not change them.
FIXED = (
    "model.class_path",
    "model.init_args.model_name",
    "model.init_args.reference_name",
    "model.init_args.optimizer.class_path",
    "data.class_path",
    "data.init_args.dataset",
    "data.init_args.train_split",
    "data.init_args.chat_template",
    "data.init_args.tokenizer_name",
    "data.init_args.max_length",
    "data.init_args.shuffle",
    "data.init_args.seed",
)


class RunState(Callback):
    """Saves and restores the position in the data (in rows), every rank's random state, and the settings.

    A checkpoint always stands at the end of an optimizer step: micro-batches behind it are done again. A finished
    epoch is kept as the start of the next one.
    """

    def __init__(self) -> None:
        self.config: State = {}
        self.force = False
        self.epoch = 0
        self.rows = 0  # of this epoch, up to the last optimizer step, over all ranks
        self.batches = 0  # the same in micro-batches
        self.total_batches = 0
        self.has_trained = False  # since this start of the run
        self.begins_step = True  # the next micro-batch is the first of an optimizer step
        self.random_state: State | None = None  # at the end of the last optimizer step
        self.optimizers: list[Groups] = []  # their settings, as configured
        self.optimizers_before: list[Groups] = []  # the same when the run began

    # ---- following the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.epoch, self.rows, self.batches, self.total_batches = trainer.current_epoch, 0, 0, 0
        self.has_trained, self.begins_step, self.random_state = False, True, None
        self.optimizers_before = []
        self._set_position(trainer, self.epoch, 0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.optimizers = configured(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        apply_changes(trainer, self.optimizers_before, self.optimizers)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        self.epoch, self.batches = trainer.current_epoch, progress.current.completed
        self.total_batches = progress.total.completed

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
            new_batches = batch_idx + 1 - self.batches
            self.rows = min(self.rows + new_batches * global_batch_size(trainer), num_examples(trainer))
            self.batches = batch_idx + 1
            self.total_batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            self.random_state = get_random_state()
            self.has_trained = self.begins_step = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.batches >= trainer.num_training_batches:  # else max_steps or a callback ended it early
            self.epoch, self.rows, self.batches = trainer.current_epoch + 1, 0, 0
            self._set_position(trainer, self.epoch, 0)

    # ---- saving

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        epoch, rows, batches = self.epoch, self.rows, self.batches
        if batches >= trainer.num_training_batches:
            epoch, rows, batches = epoch + 1, 0, 0
        checkpoint[KEY] = {
            "epoch": epoch,
            "rows": rows,
            "num_rows": num_examples(trainer),
            "global_batch_size": global_batch_size(trainer),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "world_size": trainer.world_size,
            "random_states": all_ranks(self.random_state or get_random_state()),
            "optimizers": self.optimizers,
            "config": self.config,
        }
        set_progress(checkpoint, epoch, batches, self.total_batches)

    # ---- restoring

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        if trainer.state.fn != "fit":
            return
        state = checkpoint.get(KEY)
        if state is None:
            raise ValueError("this checkpoint was not written by a smollit run: its position in the data is unknown")
        self._check_config(state["config"])
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
        num_batches, left = -(-num_rows // size), -(-(num_rows - rows) // size)
        set_progress(checkpoint, state["epoch"], num_batches - left, state["epoch"] * num_batches + num_batches - left)
        self._set_position(trainer, state["epoch"], rows)
        self.rows = rows
        self.optimizers_before = state["optimizers"]
        if trainer.global_rank < len(state["random_states"]):
            self.random_state = state["random_states"][trainer.global_rank]
        log.info("resumed at epoch %s, row %s of %s", state["epoch"], rows, num_rows)

    def _check_config(self, saved: State) -> None:
        before, now = flatten(saved), flatten(self.config)
        changed = {key: (before.get(key), now.get(key)) for key in before | now if before.get(key) != now.get(key)}
        if not before or not now or not changed:
            return
        lines = [f"  {key}: {old!r} -> {new!r}" for key, (old, new) in sorted(changed.items())]
        log.warning("settings that differ from those the run began with:\n%s", "\n".join(lines))
        fixed = [key for key in changed if key.startswith(FIXED)]
        if fixed and not self.force:
            raise ValueError(
                f"a resumed run can't change {', '.join(fixed)}:\n" + "\n".join(lines) + "\nStart a new run in another"
                " `trainer.default_root_dir`, or set `trainer.force_resume: true` if you know that they are the same"
            )

    def _set_position(self, trainer: Trainer, epoch: int, rows: int) -> None:
        position = getattr(trainer.datamodule, "position", None)  # type: ignore[attr-defined]
        if position is not None:
            position.epoch, position.rows = epoch, rows


def at_step_end(trainer: Trainer) -> bool:
    """Whether the batch that was just done ended an optimizer step."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def num_examples(trainer: Trainer) -> int:
    """Number of training rows."""
    examples = getattr(trainer.datamodule, "examples", {})  # type: ignore[attr-defined]
    return len(examples["train"]) if "train" in examples else 0


def global_batch_size(trainer: Trainer) -> int:
    """Rows per micro-batch over all ranks."""
    return int(getattr(trainer.datamodule, "train_batch_size", 1)) * trainer.world_size  # type: ignore[attr-defined]


def set_progress(checkpoint: State, epoch: int, batches: int, total_batches: int) -> None:
    """Write into Lightning's loop state: `batches` of epoch `epoch` are done, and nothing is half done."""
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_loop.batch_progress"]
    for name in ("ready", "started", "processed", "completed"):
        progress["current"][name] = batches
        progress["total"][name] = total_batches
    progress["is_last_batch"] = False
    # Lightning's loggers count by this; it is saved one too low when a checkpoint is written inside a batch's hooks.
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
    validation = loops["epoch_loop.val_loop.batch_progress"]  # one that was broken off is not taken up in its middle
    for part in ("current", "total"):
        validation[part] |= dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    for part in ("current", "total"):
        begun = epoch + 1 if batches else epoch
        loops["epoch_progress"][part] |= {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    checkpoint["epoch"] = epoch


def flatten(config: State, prefix: str = "") -> State:
    """Nested settings -> {"model.init_args.beta": 0.1, ...}."""
    flat: State = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def get_random_state() -> State:
    """Random state of torch (CPU and this process's GPU), numpy and Python, as plain numbers and tensors."""
    version, keys, gauss = random.getstate()
    name, numpy_keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": [version, list(keys), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(numpy_keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def set_random_state(state: State) -> None:
    """Undo of `get_random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numpy_keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, numpy_keys.numpy().astype(np.uint32), position, has_gauss, cached))


def all_ranks(value: State) -> list[State]:
    """The values of all ranks, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
