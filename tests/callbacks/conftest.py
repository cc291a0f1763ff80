"""A short run on sample rows: module, data and trainer in one call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightning.pytorch import Callback

from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer

SAMPLES = Path(__file__).parents[2] / "smollit" / "data" / "samples"


class Run(NamedTuple):
    """What one call made."""

    trainer: SmollitTrainer
    module: FineTuningModule
    data: Any
    folder: Path

    def fit(self, **options: Any) -> "Run":
        """Train."""
        self.trainer.fit(self.module, datamodule=self.data, **options)
        return self


@pytest.fixture
def make_run(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> Callable[..., Run]:
    """8 rows of at most 48 tokens, 2 per batch, on the tiny model."""

    def make(
        callbacks: list[Callback],
        kind: str = "sft",
        model: dict[str, Any] | None = None,
        folder: str = "run",
        **options: Any,
    ) -> Run:
        sft = kind == "sft"
        data_class, samples, splits = (
            (UltraChatDataModule, "ultrachat", ("train_sft[:8]", "test_sft[:4]"))
            if sft
            else (UltraFeedbackDataModule, "ultrafeedback", ("train_prefs[:8]", "test_prefs[:4]"))
        )
        data = data_class(
            str(SAMPLES / samples),
            *splits,
            tokenizer_name=str(tiny_model),
            max_length=48,
            train_batch_size=2,
            val_batch_size=2,
            cache_dir=str(cache_dir),
        )
        module = (SFTModule if sft else DPOModule)(str(tiny_model), learning_rate=1e-2, **(model or {}))
        trainer = SmollitTrainer(
            default_root_dir=str(tmp_path / folder),
            callbacks=callbacks,
            **{"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1} | options,
        )
        return Run(trainer, module, data, tmp_path / folder)

    return make
