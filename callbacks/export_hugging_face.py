"""ExportHuggingFace: the trained model as a Hugging Face folder, at the end of training."""

import logging
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from smollit.commands.export.command import policy_of, run_of
from smollit.commands.export.export import ExportDtype, export
from smollit.commands.export.folder import check_output
from smollit.commands.export.push import check_name, push
from smollit.commands.export.run import TrainedRun, method_of
from smollit.data.tokenized import TokenizedDataModule
from smollit.modules import FineTuningModule
from smollit.training import SmollitTrainer
from smollit.training.checkpoints.best import keeps_best
from smollit.training.checkpoints.files import FOLDER, find_checkpoint

log = logging.getLogger(__name__)


class ExportHuggingFace(Callback):
    """Writes the policy as a Hugging Face folder at the end of training.

    Resuming a run that has finished exports it too. A run that was stopped or failed exports nothing.

    Args:
        output: Folder to write; null is `export` in the run folder.
        dtype: dtype of the weights; `auto` is that of the model that training started from.
        ckpt_path: `last` exports the weights at the end of training, `best` those that `trainer.keep_best` keeps.
        push_to_hub: Name on the Hugging Face Hub to upload the export to, such as org/model; null uploads nothing.
        private: Make a new repository on the Hub private.
    """

    def __init__(
        self,
        output: str | None = None,
        dtype: ExportDtype = "auto",
        *,
        ckpt_path: Literal["last", "best"] = "last",
        push_to_hub: str | None = None,
        private: bool = True,
    ) -> None:
        self.output = output
        self.dtype = dtype
        self.ckpt_path = ckpt_path
        self.push_to_hub = push_to_hub
        self.private = private
        self.has_trained = False  # in this start of the run

    def folder(self, trainer: Trainer) -> Path:
        """The folder to write."""
        return Path(self.output or Path(trainer.default_root_dir) / "export")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what can't be exported before training, not after it: folder, push, or a best that nothing keeps."""
        self.has_trained = False
        check_name(self.push_to_hub)
        if self.ckpt_path == "best" and not any(map(keeps_best, trainer.callbacks)):  # type: ignore[attr-defined]
            raise ValueError("ExportHuggingFace with `ckpt_path: best` needs `trainer.keep_best`, such as val/loss")
        if trainer.is_global_zero:
            source = pl_module.model_name if isinstance(pl_module, FineTuningModule) else None
            check_output(self.folder(trainer), source)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export. Not in on_train_end, which comes before the last checkpoint is saved and is not called when a
        finished run is resumed."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("fast_dev_run: nothing is exported")
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TokenizedDataModule) or not isinstance(pl_module, FineTuningModule):
            raise ValueError(
                "ExportHuggingFace exports a smollit module with the chat template of a smollit data module,"
                f" got {type(pl_module).__name__} and {type(data).__name__}"
            )
        policy: nn.Module = pl_module.policy
        content = trainer.run_state.content if isinstance(trainer, SmollitTrainer) else {}
        folder = Path(trainer.default_root_dir)
        run = TrainedRun(folder, method_of(pl_module), trainer.global_step, content)
        averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        # Of a finished run, the checkpoint has the average, and the module the weights before it.
        if self.ckpt_path == "best" or (averages and not self.has_trained):
            if not trainer.is_global_zero:
                return
            path = find_checkpoint(self.ckpt_path, folder / FOLDER, trainer.callbacks)  # type: ignore[attr-defined]
            policy, run = policy_of(pl_module, data, path), run_of(folder, pl_module, path)
        export(
            policy,
            pl_module.model_name,
            template=data.template,
            output=self.folder(trainer),
            dtype=self.dtype,
            adapter=pl_module.adapter,
            run=run,
            name=self.push_to_hub,
            writes=trainer.is_global_zero,
        )
        if self.push_to_hub is not None and trainer.is_global_zero:
            push(self.folder(trainer), self.push_to_hub, private=self.private)
