"""Runs of a tiny model on a few rows, stopped on purpose, with a diary of what every optimizer step did."""

import json
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer
from smollit.training.steps import at_step_end

TINY_ROW = {"ultrachat": ("messages",), "ultrafeedback": ("prompt", "chosen", "rejected")}


def slow_but(names: Iterable[str], *quick: str) -> list[Any]:
    """Parameters of a test: those of `quick` belong to the default tests, the others are slow."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


class Diary(Callback):
    """What each optimizer step did: its number, its rows, its learning rate; and when validation ran."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, list[int], float]] = []
        self.epochs: dict[int, list[int]] = {}
        self.losses: list[float] = []
        self.validated: list[int] = []
        self.logged: list[tuple[int, dict[str, float]]] = []  # of training: step, metrics
        self.pending: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.pending += batch.example_ids.tolist()
        self.losses.append(float(outputs["loss"]))
        if at_step_end(trainer):
            self.steps.append((trainer.global_step, self.pending, pl_module.used_learning_rate))
            self.epochs.setdefault(trainer.current_epoch, []).extend(self.pending)
            self.pending = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        report = pl_module.report

        def noted(named: dict[str, Any]) -> None:
            if "train/loss" in named:
                self.logged.append((trainer.global_step, {name: float(value) for name, value in named.items()}))
            report(named)

        pl_module.report = noted

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


@dataclass
class Run:
    """A run that has ended, by itself or by an exception."""

    trainer: SmollitTrainer
    module: FineTuningModule
    diary: Diary
    error: BaseException | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> list[tuple[int, list[int], float]]:
        return self.diary.steps

    @property
    def rows(self) -> list[list[int]]:
        """The rows of each optimizer step."""
        return [rows for _, rows, _ in self.steps]


Fit = Callable[..., Run]


class Act(Callback):
    """Does something once: in a hook, the first time that `when(trainer)` holds; by default, it sends a SIGTERM."""

    def __init__(
        self, hook: str, when: Callable[[Trainer], bool] | None = None, act: Callable[[], None] | None = None
    ) -> None:
        self.when, self.act, self.done = when or (lambda trainer: True), act or sigterm, False
        setattr(self, hook, self._hook)

    def _hook(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if not self.done and not trainer.sanity_checking and self.when(trainer):
            self.done = True
            self.act()


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stop_at(step: int) -> Act:
    """Asks the run to stop when so many optimizer steps are done."""
    return Act("on_train_batch_start", lambda trainer: trainer.global_step == step)


def stop_and_resume(fit: Fit, folder: Path, step: int, **options: Any) -> tuple[Run, Run]:
    """A whole run and a resumed one: stopped at a step and resumed, it has the same steps and, to the bit, weights."""
    whole = fit(folder / "whole", **options)
    broken = fit(folder / "broken", stop_at(step), **options)
    resumed = fit(folder / "broken", **options)
    assert isinstance(broken.error, SystemExit)
    assert whole.error is None and resumed.error is None
    assert len(broken.steps) == step
    assert broken.steps + resumed.steps == whole.steps
    assert_same_weights(resumed.weights, whole.weights)
    return whole, resumed


def tiny_rows(folder: Path, source: Path, split: str, num_rows: int) -> None:
    """The first rows of a shipped sample file, as a split of a separate data set."""
    lines = (source / f"{split}.jsonl").read_text().splitlines()[:num_rows]
    rows = [{name: json.loads(line)[name] for name in TINY_ROW[source.name]} for line in lines]
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """13 rows to train on and 4 to validate on, of chats and of pairs: 7 micro-batches of 2, the last one of 1."""
    samples = Path(__file__).parents[2] / "smollit" / "data" / "samples"
    folders = {}
    for name, splits in {
        "ultrachat": ("train_sft", "test_sft"),
        "ultrafeedback": ("train_prefs", "test_prefs"),
    }.items():
        folder = tmp_path_factory.mktemp(name)
        for split, num_rows in zip(splits, (13, 4), strict=True):
            tiny_rows(folder, samples / name, split, num_rows)
        folders[name] = folder
    return folders


@pytest.fixture
def fit(tiny_model: Path, tiny_data: dict[str, Path], cache_dir: Path) -> Fit:
    """fit(folder, ...) trains, or resumes; exceptions are kept in the result, as is the diary."""

    def run(
        folder: Path,
        *callbacks: Callback,
        kind: str = "sft",
        model: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        ckpt_path: str | None = "last",
        module_class: type[FineTuningModule] | None = None,
        seed: int = 7,
        **trainer: Any,
    ) -> Run:
        seed_everything(seed, verbose=False)
        module_class = module_class or (SFTModule if kind == "sft" else DPOModule)
        data_class = UltraChatDataModule if kind == "sft" else UltraFeedbackDataModule
        module = module_class(**{"model_name": str(tiny_model), "learning_rate": 1e-3, "dropout": 0.1, **(model or {})})
        dataset = str(tiny_data["ultrachat" if kind == "sft" else "ultrafeedback"])
        common = {"max_length": 96, "train_batch_size": 2, "val_batch_size": 2, "cache_dir": str(cache_dir)}
        datamodule = data_class(**{"dataset": dataset, "tokenizer_name": str(tiny_model), **common, **(data or {})})
        diary = Diary()
        options = {
            "max_epochs": 3,
            "accumulate_grad_batches": 2,
            "val_every_n_steps": 2,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 5,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "num_sanity_val_steps": 0,
            **trainer,
        }
        result = Run(
            SmollitTrainer(str(folder), callbacks=[diary, *callbacks], **options),
            module,
            diary,  # type: ignore[arg-type]
        )
        try:
            result.trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
        except BaseException as error:
            result.error = error
        if module.policy is not None:
            result.weights = {name: value.detach().clone() for name, value in module.policy.state_dict().items()}
        return result

    return run


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal to the bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
