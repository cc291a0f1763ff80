"""SmollitTrainer instead of Trainer: with another LightningModule and Lightning's own tools, the result is the same."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel, ManualOptimBoringModel, RandomDataset
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, StrategyRegistry
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, DistributedSampler

from smollit.training import SmollitTrainer

Make = Callable[..., Trainer]


class Boring(BoringModel):
    """Logs its losses, draws random numbers, and has a learning rate and a batch size that a tuner may set."""

    def __init__(self, lr: float = 0.05, batch_size: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.batch_size, self.backbone = lr, batch_size, torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.nn.functional.dropout(self.backbone(x), 0.1, self.training))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", super().validation_step(batch, batch_idx)["x"])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", super().test_step(batch, batch_idx)["y"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}

    def _loader(self) -> DataLoader:
        return DataLoader(RandomDataset(32, 16), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


class Unfreeze(BackboneFinetuning):
    """Its first group is made before Lightning's, as in its docs."""


class Calls(Callback):
    """The hooks that were called, with the step."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        for name in [name for name in dir(Callback) if name.startswith("on_")]:
            setattr(self, name, self._note(name))

    def _note(self, name: str) -> Callable[..., None]:
        return lambda trainer, *args, **kwargs: self.calls.append((name, trainer.global_step))


class Fault(Callback):
    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("a fault")


def files(folder: Path) -> list[str]:
    """The files of a folder, except TensorBoard's, whose names hold the time."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name)


def found(trainer: Trainer, model: LightningModule, calls: Calls) -> dict[str, Any]:
    """All that a user could see of a run."""
    metrics = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
    return {
        "calls": calls.calls,
        "steps": (trainer.global_step, trainer.current_epoch, trainer.num_training_batches),
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        **{name: {key: float(value) for key, value in getattr(trainer, name).items()} for name in metrics},
        "files": files(Path(trainer.default_root_dir)),
        "callbacks": [type(callback).__name__.replace("ProgressBar", "") for callback in trainer.callbacks],
        "should_stop": trainer.should_stop,
        "hparams": dict(model.hparams),
    }


SMALL: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 6, "limit_val_batches": 2}
FLAGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fast_dev_run": {"fast_dev_run": True},
    "fast_dev_run of 3": {"fast_dev_run": 3},
    "overfit_batches": {"overfit_batches": 2},
    "fractions": {"limit_train_batches": 0.5, "limit_val_batches": 0.5},
    "max_steps": {"max_epochs": -1, "max_steps": 7},
    "min_epochs": {"min_epochs": 2, "max_epochs": 3},
    "max_time": {"max_time": "00:00:01:00"},
    "accumulation": {"accumulate_grad_batches": 4},
    "clipping": {"gradient_clip_val": 0.01},
    "clipping by value": {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
    "validation in mid-epoch": {"val_check_interval": 0.5},
    "validation over epochs": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "every second epoch": {"check_val_every_n_epoch": 2},
    "no sanity check": {"num_sanity_val_steps": 0},
    "whole sanity check": {"num_sanity_val_steps": -1},
    "no checkpoints": {"enable_checkpointing": False},
    "no logger": {"logger": False},
    "no bar, no summary": {"enable_progress_bar": False, "enable_model_summary": False},
    "barebones": {"barebones": True},
    "profiler": {"profiler": "simple"},
    "anomaly": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
    "double": {"precision": "64-true"},
    "bf16": {"precision": "bf16-mixed"},
    "reloaded": {"reload_dataloaders_every_n_epochs": 1},
    "ddp": {"strategy": "ddp", "devices": 1},
    "log steps": {"log_every_n_steps": 2},
    "nothing to train": {"limit_train_batches": 0},
}
CALLBACKS: dict[str, Callable[[Path], list[Callback]]] = {
    "early stopping": lambda folder: [EarlyStopping("val_loss", patience=1, mode="max")],
    "early stopping in training": lambda folder: [EarlyStopping("train_loss_step", patience=1, mode="max")],
    "best": lambda folder: [ModelCheckpoint(folder, monitor="val_loss", save_top_k=2)],
    "each step": lambda folder: [ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, save_last=True)],
    "rates": lambda folder: [LearningRateMonitor("step")],
    "averaging": lambda folder: [StochasticWeightAveraging(swa_lrs=1e-2)],
    "timer": lambda folder: [Timer("00:00:01:00")],
    "scheduled accumulation": lambda folder: [GradientAccumulationScheduler({0: 2, 1: 3})],
    "own bar": lambda folder: [TQDMProgressBar(refresh_rate=2)],
    "own summary": lambda folder: [ModelSummary(max_depth=2)],
    "rate finder": lambda folder: [LearningRateFinder(num_training_steps=8)],
    "size finder": lambda folder: [BatchSizeFinder(max_trials=1)],
    "backbone": lambda folder: [Unfreeze(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01)],
}


def trained(kind: type[Trainer], folder: Path, callbacks: list[Callback], **options: Any) -> dict[str, Any]:
    seed_everything(3, verbose=False)
    calls, model = Calls(), Boring()
    options = {"accelerator": "cpu", "default_root_dir": str(folder)} | SMALL | options
    trainer = kind(callbacks=[calls, *callbacks], **options)
    trainer.fit(model)
    return found(trainer, model, calls)


def same(tmp_path: Path, run: Callable[[type[Trainer], Path], Any]) -> None:
    """The results of both trainers are equal, in all digits."""
    expected, got = (run(kind, tmp_path / kind.__name__) for kind in (Trainer, SmollitTrainer))
    assert got == expected


# promise: lightning
# case: A10
@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_means_what_it_means_to_trainer(name: str, tmp_path: Path) -> None:
    """The same hooks, steps, metrics, files, callbacks and weights."""
    same(tmp_path, lambda kind, folder: trained(kind, folder, [], **FLAGS[name]))


# promise: lightning
# case: A10
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.slow
def test_every_callback_does_what_it_does_in_trainer(name: str, tmp_path: Path) -> None:
    same(tmp_path, lambda kind, folder: trained(kind, folder, CALLBACKS[name](folder / "own")))


# case: A10
@pytest.mark.slow
def test_the_commands_work_one_after_another(tmp_path: Path) -> None:
    """fit, validate and test without a model, predict, from the best and the last checkpoint, with loaders, a data
    module, and a module of one's own that has manual optimization."""

    def run(kind: type[Trainer], folder: Path) -> Any:
        seed_everything(3, verbose=False)
        model = Boring()
        trainer = kind(default_root_dir=str(folder), accelerator="cpu", **SMALL)
        trainer.fit(model)
        results = [trainer.validate(), trainer.test(), trainer.validate(ckpt_path="best"), trainer.test(model)]
        predictions = trainer.predict(model), trainer.predict(ckpt_path="best", return_predictions=True)
        trainer.save_checkpoint(folder / "own.ckpt")
        trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
        again = kind(default_root_dir=str(folder / "again"), accelerator="cpu", **SMALL | {"max_epochs": 3})
        again.fit(model, DataLoader(RandomDataset(32, 8)), ckpt_path=str(folder / "own.ckpt"), weights_only=True)
        other = kind(default_root_dir=str(folder / "other"), accelerator="cpu", logger=False, **SMALL)
        other.fit(ManualOptimBoringModel(), datamodule=BoringDataModule())
        other.test(BoringModel(), BoringDataModule())
        keys = sorted(torch.load(folder / "own.ckpt", weights_only=True))
        steps = (again.global_step, again.current_epoch, other.global_step)
        return str(results), str(predictions), steps, keys, files(folder)

    same(tmp_path, run)


# case: A10
def test_trainers_notes_and_warnings_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each command, in their order; also what a command prints."""

    def run(kind: type[Trainer], folder: Path) -> Any:
        seed_everything(3, verbose=False)
        model = Boring()
        trainer = kind(default_root_dir=str(folder), accelerator="cpu", enable_progress_bar=False, **SMALL)
        caplog.clear()  # the advertisements of other products
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            trainer.fit(model)
            trainer.validate(model)
            trainer.test(model)
            trainer.predict(model)
        said = [str(warning.message) for warning in warned] + caplog.messages + capsys.readouterr().out.splitlines()
        return [line.replace(str(folder), "") for line in said if " FLOPs" not in line]

    with caplog.at_level("INFO"):
        same(tmp_path, run)


# case: A10
def test_a_shuffled_distributed_sampler_is_kept_in_order_with_overfit_batches(tmp_path: Path) -> None:
    """Lightning replaces what shuffles; a module's own `predict_step` gets the batches of its own loader."""

    class Own(Boring):
        def train_dataloader(self) -> DataLoader:
            rows = RandomDataset(32, 16)
            return DataLoader(rows, sampler=DistributedSampler(rows, num_replicas=1, rank=0, shuffle=True))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch_idx, batch.sum().item()

    def run(kind: type[Trainer], folder: Path) -> Any:
        seed_everything(3, verbose=False)
        calls, model = Calls(), Own()
        options: dict[str, Any] = {"default_root_dir": str(folder), "overfit_batches": 2, "max_epochs": 2}
        trainer = kind(accelerator="cpu", callbacks=[calls], **options)
        trainer.fit(model)
        sampler = trainer.train_dataloader.sampler
        predictions = trainer.predict(model, DataLoader(RandomDataset(32, 4)))
        return found(trainer, model, calls), type(sampler).__name__, list(sampler), str(predictions)

    same(tmp_path, run)


# case: A10
def test_callbacks_get_their_state_back(tmp_path: Path) -> None:
    """A run that is ended after an epoch and resumed: wait counts, best models and metrics are those of Trainer."""

    def run(kind: type[Trainer], folder: Path) -> Any:
        states = []
        for epochs in (2, 4):
            seed_everything(3, verbose=False)
            stop = EarlyStopping("val_loss", patience=3, mode="max")
            keep = ModelCheckpoint(folder / "own", monitor="val_loss", save_last=True)
            options = SMALL | {"max_epochs": epochs}
            trainer = kind(default_root_dir=str(folder), accelerator="cpu", callbacks=[stop, keep], **options)
            trainer.fit(Boring(), ckpt_path="last" if epochs == 4 else None)
            states.append((stop.wait_count, float(stop.best_score), float(keep.best_model_score or 0)))
            states.append((trainer.global_step, trainer.current_epoch, Path(keep.best_model_path).name))
        return states, files(folder)

    same(tmp_path, run)


# case: A10
def test_a_fault_ends_and_resumes_as_in_trainer(tmp_path: Path) -> None:
    """OnExceptionCheckpoint saves the step of the fault, and Lightning resumes from it without `ckpt_path`."""

    def run(kind: type[Trainer], folder: Path) -> Any:
        calls = Calls()
        options = SMALL | {"default_root_dir": str(folder), "accelerator": "cpu", "logger": False}
        trainer = kind(callbacks=[calls, Fault(), OnExceptionCheckpoint(folder)], **options)
        with pytest.raises(RuntimeError, match="a fault"):
            trainer.fit(Boring())
        again = kind(callbacks=[OnExceptionCheckpoint(folder)], **options)
        again.fit(Boring())
        return calls.calls, again.global_step, files(folder)

    same(tmp_path, run)


# case: A10
@pytest.mark.slow
def test_tuners_find_what_they_do_with_trainer(tmp_path: Path) -> None:
    """A learning rate, then a batch size, then a fit of the tuned module."""

    def run(kind: type[Trainer], folder: Path) -> Any:
        seed_everything(3, verbose=False)
        folder.mkdir()
        model, calls = Boring(), Calls()
        trainer = kind(default_root_dir=str(folder), accelerator="cpu", callbacks=[calls], **SMALL)
        tuner = Tuner(trainer)
        finder = tuner.lr_find(model, num_training=12, max_lr=0.1)
        size = tuner.scale_batch_size(model, max_trials=2, steps_per_trial=1)
        trainer.fit(model)
        assert finder is not None
        return finder.results, size, found(trainer, model, calls)

    same(tmp_path, run)


# case: A10
def test_trainers_environment_variables_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PL_TRAINER_MAX_STEPS=3: 3 steps; what is given in code wins."""
    for name, value in {"MAX_STEPS": "3", "LOGGER": "False", "DEFAULT_ROOT_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    trainer = SmollitTrainer(accelerator="cpu", max_epochs=-1)
    trainer.fit(BoringModel())
    assert trainer.global_step == 3 and trainer.loggers == [] and trainer.default_root_dir == str(tmp_path)
    assert SmollitTrainer(str(tmp_path / "own"), accelerator="cpu", max_steps=2).max_steps == 2


# case: A10
def test_intervals_in_steps_work_with_any_module(tmp_path: Path) -> None:
    """6 micro-batches, 4 accumulated: 2 steps per epoch; validated and saved after each second of 4 steps."""
    calls = Calls()
    options = SMALL | {"accumulate_grad_batches": 4, "val_every_n_steps": 2, "checkpoint_every_n_steps": 2}
    logger = CSVLogger(str(tmp_path / "csv"))
    SmollitTrainer(str(tmp_path), accelerator="cpu", callbacks=calls, logger=logger, **options).fit(Boring())
    validated = [step for name, step in calls.calls if name == "on_validation_end" and step]
    assert validated == [2, 4]
    assert files(tmp_path / "checkpoints") == ["step-0000002.ckpt", "step-0000004.ckpt"]
    with pytest.raises(ValueError, match=r"`trainer.val_check_interval` has no effect with `val_every_n_steps`"):
        SmollitTrainer(str(tmp_path), val_every_n_steps=2, val_check_interval=0.5)


# promise: nothing-global
@pytest.mark.slow
def test_importing_smollit_changes_nothing_global(tmp_path: Path) -> None:
    """Warning filters, loggers, signal handlers and Lightning's registry are as before; `fsdp` is Lightning's."""
    program = """
import logging, signal, warnings
import accelerate.scheduler, datasets, lightning.pytorch.cli, torch, torchmetrics, transformers
from lightning.pytorch.strategies import StrategyRegistry
def state():
    return (list(warnings.filters), {name: dict(entry) for name, entry in StrategyRegistry.items()},
            {n: (l.level, list(l.filters), list(l.handlers)) for n, l in logging.Logger.manager.loggerDict.items()
             if isinstance(l, logging.Logger) and n.startswith("lightning")}, signal.getsignal(signal.SIGINT))
before = state()
import smollit.training, smollit.data, smollit.modules
assert state() == before
"""
    subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", program], check=True, cwd=tmp_path.parent)
    assert StrategyRegistry["fsdp"]["strategy"] is FSDPStrategy
