"""SmollitTrainer: Lightning's Trainer with run folders, exact resume, and intervals in optimizer steps."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from smollit.tools.export import ExportDtype, export, load_policy
from smollit.training.checkpoint_io import AtomicCheckpointIO, check_resumable, latest_checkpoint
from smollit.training.schedule import ValidateEverySteps
from smollit.training.state import RunState
from smollit.training.stop import GracefulStop
from smollit.training.strategies import register
from smollit.training.summary import StartSummary

register()


class SmollitTrainer(Trainer):
    """Lightning's Trainer for one run in one folder.

    What every run needs is built in code, so a config that replaces the list of callbacks can't lose it.

    Args:
        default_root_dir: The run's folder: config.yaml, checkpoints/, TensorBoard events, exports.
        val_every_n_steps: Validate every so many optimizer steps, and after the last; null follows Lightning's own
            val_check_interval, which counts micro-batches.
        checkpoint_every_n_steps: Save a checkpoint every so many optimizer steps; null saves only at the end of
            training and at a stop.
        keep_checkpoints: How many of those to keep, besides last.ckpt.
        force_resume: Let a resumed run change settings that give its saved state another meaning.
        callbacks: Callbacks besides the built-in ones.
        logger: true logs to TensorBoard in the run's folder; false logs nothing.
        enable_checkpointing: false saves no checkpoints at all.
        use_distributed_sampler: Leave this false: the data module deals rows out to the devices itself.
        enable_model_summary: true adds Lightning's table of modules to our own summary.
        **options: All other options of Lightning's Trainer.
    """

    def __init__(
        self,
        default_root_dir: str = "runs/default",
        val_every_n_steps: int | None = None,
        checkpoint_every_n_steps: int | None = None,
        keep_checkpoints: int = 2,
        force_resume: bool = False,
        callbacks: list[Callback] | Callback | None = None,
        logger: Any = True,
        enable_checkpointing: bool = True,
        use_distributed_sampler: bool = False,
        enable_model_summary: bool = False,
        **options: Any,
    ) -> None:
        root = Path(default_root_dir)
        self.run_state = RunState()
        self.run_state.force = force_resume
        self.checkpoint_folder = root / "checkpoints"
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        built_in: list[Callback] = [self.run_state, StartSummary()]
        if val_every_n_steps is not None:
            built_in.append(ValidateEverySteps(val_every_n_steps))
        if enable_checkpointing and checkpoint_every_n_steps is not None:
            built_in.append(_periodic(self.checkpoint_folder, checkpoint_every_n_steps, keep_checkpoints))
        if enable_checkpointing:
            _use_atomic_writes(options)
        if logger is True:
            logger = TensorBoardLogger(save_dir=str(root), name="", version="")
        # The last to be asked: it leaves the run, when all others have seen the batch.
        built_in.append(GracefulStop(self.checkpoint_folder if enable_checkpointing else None))
        super().__init__(
            default_root_dir=str(root),
            callbacks=[*built_in[:-1], *given, built_in[-1]],
            logger=logger,
            enable_checkpointing=enable_checkpointing and any(isinstance(c, ModelCheckpoint) for c in built_in + given),
            enable_model_summary=enable_model_summary,
            use_distributed_sampler=use_distributed_sampler,
            **options,
        )

    def fit(  # type: ignore[override]
        self,
        model: LightningModule,
        train_dataloaders: Any | None = None,
        val_dataloaders: Any | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = True,
    ) -> None:
        """Train, or go on training.

        Args:
            model: What to train.
            train_dataloaders: Batches, if there is no data module.
            val_dataloaders: Batches, if there is no data module.
            datamodule: Where batches come from.
            ckpt_path: A checkpoint to resume from; `last` takes the newest of the run's folder, or starts if there is
                none; null starts anew.
            weights_only: Passed to torch.load; checkpoints of smollit hold only safe types.
        """
        if ckpt_path == "last":
            newest = latest_checkpoint(self.checkpoint_folder)
            ckpt_path = str(newest) if newest else None
        if ckpt_path is not None:
            check_resumable(ckpt_path)
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)


    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
        dtype: ExportDtype = "auto",
    ) -> None:
        """Write a checkpoint as a Hugging Face folder, read it back and compare.

        Args:
            model: The module that made the checkpoint.
            datamodule: Gives the tokenizer and the chat template.
            ckpt_path: The checkpoint; `last` or null takes the newest of the run's folder.
            output: Folder to write; null takes <run folder>/export.
            dtype: dtype of the weights; `auto` takes that of the model that training began with.
        """
        newest = latest_checkpoint(self.checkpoint_folder)
        path = Path(ckpt_path) if ckpt_path not in (None, "last") else newest
        if path is None or not path.exists():
            raise ValueError(f"there is no checkpoint {path or f'in {self.checkpoint_folder}'}: train first")
        self.strategy.connect(model)
        model.trainer = self
        load_policy(model, path)
        export(model, datamodule.template, Path(output or Path(self.default_root_dir) / "export"), dtype)


def _periodic(folder: Path, every_n_steps: int, keep: int) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=folder,
        filename="step-{step:07d}",
        auto_insert_metric_name=False,  # metric names hold slashes, which would make folders
        monitor="step",
        mode="max",
        save_top_k=keep,
        every_n_train_steps=every_n_steps,
    )


def _use_atomic_writes(options: dict[str, Any]) -> None:
    strategy = options.get("strategy", "auto")
    if isinstance(strategy, str) and not strategy.startswith("fsdp"):  # sharded strategies write by themselves
        plugins = options.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        options["plugins"] = [*plugins, AtomicCheckpointIO()]
