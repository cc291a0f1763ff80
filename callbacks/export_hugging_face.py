"""ExportHuggingFace: the trained model as a Hugging Face folder, at the end of training."""

import logging
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.commands.export import ExportDtype, check_output, export

log = logging.getLogger(__name__)


class ExportHuggingFace(Callback):
    """Exports the policy when training has ended by itself; a run that was stopped or failed exports nothing.

    Args:
        output: Folder to write; null takes `export` in the run's folder.
        dtype: dtype of the weights; `auto` takes that of the model that training began with.
    """

    def __init__(self, output: str | None = None, dtype: ExportDtype = "auto") -> None:
        self.output = output
        self.dtype = dtype

    def folder(self, trainer: Trainer) -> Path:
        """Where the export goes."""
        return Path(self.output or Path(trainer.default_root_dir) / "export")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Now, not after hours of training.
        if trainer.is_global_zero:
            check_output(self.folder(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not on_train_end: that is not called when a finished run is resumed, and comes before last.ckpt is saved.
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("fast_dev_run: nothing is exported")
            return
        export(
            pl_module.policy,  # type: ignore[arg-type]
            pl_module.model_name,  # type: ignore[arg-type]
            template=trainer.datamodule.template,  # type: ignore[attr-defined]
            output=self.folder(trainer),
            dtype=self.dtype,
            writes=trainer.is_global_zero,
        )
