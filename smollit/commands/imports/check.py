"""`import --check N`: the same rows, scored by TRL with its own config and by smollit with the imported one."""

import tempfile
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback

from smollit.commands.imports.trl_losses import is_cpo
from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.data.formats.converters import decode_row
from smollit.data.sources.mixture import load_source
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer

METRICS = {
    "SFTModule": {"loss_tokens": "loss_tokens", "loss": "loss", "mean_token_accuracy": "token_accuracy"},
    "DPOModule": {name: name for name in ("loss_tokens", "loss", "logps/chosen", "logps/rejected")},
}
# All metrics are of before the step, in fp32 on the CPU, without adapter, clipping and accumulation.
PLAIN: dict[str, Any] = {
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-12,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1e9,
    "bf16": False,
    "fp16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "logging_strategy": "steps",
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "push_to_hub": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "dataloader_num_workers": 0,
    "model_init_kwargs": {"dtype": "float32"},
}


class Checked(NamedTuple):
    """A metric of the rows, by TRL and by smollit."""

    name: str
    trl: float
    smollit: float

    @property
    def agrees(self) -> bool:
        """Whether they are equal to 1e-4, relative to numbers above 1."""
        return abs(self.trl - self.smollit) <= 1e-4 * max(1.0, abs(self.trl), abs(self.smollit))


def check(given: Mapping[str, Any], config: Mapping[str, Any], num_rows: int) -> list[Checked]:
    """Score the first rows of the training split in both, before any step.

    Args:
        given: The settings of TRL.
        config: Those of smollit that they became.
        num_rows: Number of rows.

    Raises:
        ValueError: If TRL is not installed, or one of both can't run its config.
    """
    if find_spec("trl") is None:
        raise ValueError("`check` needs TRL: pip install 'smollit[trl]'; the config is written")
    if is_cpo(given):
        raise ValueError("`check` runs SFTTrainer and DPOTrainer, and this is a config of CPO; the config is written")
    kind = config["model"]["class_path"].rpartition(".")[2]
    data = config["data"]["init_args"]
    if not isinstance(data.get("dataset"), str) or "model_name" not in config["model"]["init_args"]:
        raise ValueError("`check` needs a config that names the model and one data set; the config is written")
    source = load_source(data["dataset"], data.get("train_split", "train"), subset=data.get("subset"))
    rows = [decode_row(row) for row in source.rows.select(range(min(num_rows, len(source.rows))))]
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs = by_trl(given, rows, kind=kind, folder=folder)
        except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"TRL can't score these rows with its config: {error}") from error
        ours = by_smollit(config, rows, kind=kind, folder=folder)
    return [Checked(name, theirs[of_trl], ours[name]) for of_trl, name in METRICS[kind].items()]


def by_trl(given: Mapping[str, Any], rows: list[Any], *, kind: str, folder: str) -> dict[str, float]:
    """What the first step of TRL's trainer logs."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    is_dpo = kind == "DPOModule"
    config: type[Any] = DPOConfig if is_dpo else SFTConfig
    make: type[Any] = DPOTrainer if is_dpo else SFTTrainer
    known = {field.name for field in fields(config)}
    own = {name: value for name, value in given.items() if name in known and not name.startswith(("eval_", "warmup"))}
    trainer: Any = make(
        model=given["model_name_or_path"],
        args=config(**(own | PLAIN | {"output_dir": folder, "per_device_train_batch_size": len(rows)})),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given["model_name_or_path"]),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    counts = batch["completion_mask"] if is_dpo else batch["labels"] != -100
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {**trainer.state.log_history[0], "loss_tokens": float(counts[:, 1:].sum())}


def by_smollit(config: Mapping[str, Any], rows: list[Any], *, kind: str, folder: str) -> dict[str, float]:
    """What the first step of smollit logs."""
    dropped = ("train_split", "val_split", "dataset", "subset", "train_batch_size", "val_batch_size", "packing")
    options = {name: value for name, value in config["data"]["init_args"].items() if name not in dropped}
    make = UltraChatDataModule if kind == "SFTModule" else UltraFeedbackDataModule
    in_memory: Any = rows
    data = make(in_memory, train_split="train", val_split=None, train_batch_size=len(rows), cache_dir=folder, **options)
    model = {name: config["model"]["init_args"].get(name) for name in ("model_name", "loss", "dropout")}
    given = {name: value for name, value in model.items() if value is not None}
    module: type[FineTuningModule] = SFTModule if kind == "SFTModule" else DPOModule
    trainer = SmollitTrainer(
        f"{folder}/smollit",
        accelerator="cpu",
        devices=1,
        max_steps=1,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module(**given, learning_rate=1e-12), datamodule=data)
    logged = {name.removeprefix("train/"): value.item() for name, value in trainer.callback_metrics.items()}
    return {**logged, "loss_tokens": float(data.reports["train"].loss_tokens)}
