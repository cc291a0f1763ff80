"""EvaluatingTrainer: `validate`, `test` and `predict`, which take `last` and `best` as checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule

from smollit.modules import FineTuningModule
from smollit.training.checkpoints.files import best_checkpoint, find_checkpoint, refuse_shards
from smollit.training.checkpoints.saving import SavingTrainer
from smollit.training.logs.quiet import quiet
from smollit.training.stop import ctrl_c_exits


class EvaluatingTrainer(SavingTrainer):
    """A Trainer that measures a FineTuningModule, and lets it respond, with any checkpoint of its run."""

    callbacks: list[Callback]
    datamodule: LightningDataModule | None  # Lightning sets it in each command
    checkpoint_folder: Path

    def prepare(self, model: LightningModule | None, *, resumes: bool = False) -> bool:
        """Whether `model`, or the module that was trained, is a FineTuningModule; called before each command.

        Args:
            model: The module of the command; None is the one that was trained.
            resumes: Whether a checkpoint follows: then loggers continue where they are.
        """
        return isinstance(model or self.lightning_module, FineTuningModule)

    @contextmanager
    def _ours(self, model: LightningModule | None) -> Iterator[None]:
        """What surrounds a command of a FineTuningModule."""
        if not self.prepare(model):
            yield
            return
        with quiet(), ctrl_c_exits():
            yield

    # ---- Trainer's methods, with its signatures

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Measure the validation split.

        Args:
            model: The module to measure; null takes the one that was trained.
            dataloaders: Batches, if there is no data module.
            ckpt_path: A checkpoint to measure: a path, `last` or `best`; null measures the given model.
            verbose: Print the metrics.
            datamodule: Where batches come from.
            weights_only: false allows a checkpoint to execute code; smollit's checkpoints do not need it.
        """
        model, path, safe = self._evaluated(model, ckpt_path, weights_only)
        with self._ours(model):
            return super().validate(model, dataloaders, path, verbose, datamodule, safe)

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Measure the test split.

        Args:
            model: The module to measure; null takes the one that was trained.
            dataloaders: Batches, if there is no data module.
            ckpt_path: A checkpoint to measure: a path, `last` or `best`; null measures the given model.
            verbose: Print the metrics.
            datamodule: Where batches come from.
            weights_only: false allows a checkpoint to execute code; smollit's checkpoints do not need it.
        """
        model, path, safe = self._evaluated(model, ckpt_path, weights_only)
        with self._ours(model):
            return super().test(model, dataloaders, path, verbose, datamodule, safe)

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Respond to the prompts of a split.

        Args:
            model: The module that responds; null takes the one that was trained.
            dataloaders: Batches, if there is no data module.
            datamodule: Where batches come from.
            return_predictions: Return the responses, from Python.
            ckpt_path: A checkpoint that responds: a path, `last` or `best`; null uses the given model.
            weights_only: false allows a checkpoint to execute code; smollit's checkpoints do not need it.
        """
        model, path, safe = self._evaluated(model, ckpt_path, weights_only)
        with self._ours(model):
            return super().predict(model, dataloaders, datamodule, return_predictions, path, safe)

    def _evaluated(
        self, model: LightningModule | None, ckpt_path: str | Path | None, weights_only: bool | None
    ) -> tuple[LightningModule | None, str | Path | None, bool | None]:
        """Module, checkpoint and `weights_only` of a command that does not train."""
        if not self.prepare(model, resumes=ckpt_path is not None):
            return model, ckpt_path, weights_only
        path = None if ckpt_path is None else str(find_checkpoint(ckpt_path, self.checkpoint_folder, self.callbacks))
        if model is None and path is None:  # Lightning: the best of the run
            best = best_checkpoint(self.callbacks, self.checkpoint_folder)
            path = str(best) if best else None
            model = self.lightning_module
        module = model or self.lightning_module
        assert isinstance(module, FineTuningModule)
        module.restores_weights = path is not None
        refuse_shards(path, self.strategy)
        return model, path, True if weights_only is None else weights_only
