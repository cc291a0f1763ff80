"""What a setting of another tool is in smollit: the tables of three tools, and the conversions of values."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Settings = dict[str, Any]  # of smollit, by the names that a user types: {"model.learning_rate": 1e-5}
Convert = Callable[[Any], Settings]
SCHEDULES = {
    "linear": "Linear",
    "cosine": "Cosine",
    "cosine_with_min_lr": "Cosine",
    "constant": "Constant",
    "constant_with_warmup": "Constant",
    "inverse_sqrt": "InverseSqrt",
    "warmup_stable_decay": "WSD",
}
NO_NEED = "smollit has no need of it"


class Tool(NamedTuple):
    """Another tool.

    Args:
        name: Its name.
        keys: Keys that only its configs have: some of them tell the tool.
        table: Its settings as smollit's; None for one without counterpart.
        reasons: Why there is none.
        defaults: Its defaults that are not smollit's: they are written out.
    """

    name: str
    keys: frozenset[str]
    table: Mapping[str, Convert | None]
    reasons: Mapping[str, str]
    defaults: Mapping[str, Any]


def to(name: str, change: Callable[[Any], Any] = lambda value: value) -> Convert:
    """The setting of another name, perhaps with another value."""
    return lambda value: {name: change(value)}


def schedule(value: Any) -> Settings:
    """A schedule by its name in transformers.

    Raises:
        ValueError: If smollit has no such schedule.
    """
    if value not in SCHEDULES:
        raise ValueError(f"there is no schedule {value}")
    return {"model.schedule": SCHEDULES[value]}


def flag(name: str, value: Any) -> Convert:
    """A switch of theirs that is a value of ours."""
    return lambda given: {name: value} if given in (True, "auto", "true") else {}


def positive(name: str) -> Convert:
    """A number that counts only above 0: -1 and 0 mean that there is no limit."""
    return lambda value: {name: value} if value and value > 0 else {}


def epochs(value: Any) -> Settings:
    """A number of epochs.

    Raises:
        ValueError: If it is a fraction: smollit counts whole ones.
    """
    if value != int(value):
        raise ValueError("a part of an epoch has no counterpart: set `trainer.max_steps`")
    return {"trainer.max_epochs": int(value)}


def loss(value: Any) -> Settings:
    """A loss by TRL's name; several are a sum."""
    names = value if isinstance(value, list) else [value]
    if len(names) == 1:
        return {"model.loss": names[0]}
    return {"model.loss": "Sum", "model.loss.losses": [{"class_path": name} for name in names]}


def optimizer(name: str) -> Convert:
    """A setting of torch's AdamW."""
    return lambda value: {f"model.optimizer.{name}": value}


def every(name: str) -> Convert:
    """An interval in steps; a fraction of the run has no counterpart.

    Raises:
        ValueError: If it is a fraction.
    """

    def convert(value: Any) -> Settings:
        if isinstance(value, float) and value < 1:
            raise ValueError("an interval as a fraction of the run has no counterpart: give steps")
        return {name: int(value)}

    return convert


def splits(name: str) -> Convert:
    """A fraction or number of rows that is held out for validation, as a slice of the training split."""

    def convert(value: Any) -> Settings:
        if not value:
            return {"data.val_split": None}
        size = f"{round(100 * value)}%" if value < 1 else str(int(value))
        return {"data.train_split": f"{name}[{size}:]", "data.val_split": f"{name}[:{size}]"}

    return convert


TRANSFORMERS: dict[str, Convert | None] = {
    "output_dir": to("trainer.default_root_dir"),
    "learning_rate": to("model.learning_rate", float),
    "lr_scheduler_type": schedule,
    "warmup_ratio": to("model.warmup_ratio"),
    "warmup_steps": positive("model.num_warmup_steps"),
    "num_train_epochs": epochs,
    "max_steps": positive("trainer.max_steps"),
    "per_device_train_batch_size": to("data.train_batch_size"),
    "per_device_eval_batch_size": to("data.val_batch_size"),
    "gradient_accumulation_steps": to("trainer.accumulate_grad_batches"),
    "gradient_checkpointing": to("model.gradient_checkpointing"),
    "max_grad_norm": positive("trainer.gradient_clip_val"),
    "weight_decay": optimizer("weight_decay"),
    "adam_epsilon": optimizer("eps"),
    "bf16": flag("trainer.precision", "bf16-mixed"),
    "fp16": flag("trainer.precision", "16-mixed"),
    "eval_steps": every("trainer.val_every_n_steps"),
    "save_steps": every("trainer.checkpoint_every_n_steps"),
    "save_total_limit": positive("trainer.keep_checkpoints"),
    "logging_steps": every("trainer.log_every_n_steps"),
    "seed": to("seed_everything"),
    "dataloader_num_workers": to("data.num_workers"),
    "group_by_length": to("data.group_by_length"),
    "torch_compile": to("model.compile"),
    "push_to_hub": None,
    "report_to": None,
    "ddp_timeout": None,
    "save_strategy": None,
    "eval_strategy": None,
    "do_train": None,
    "do_eval": None,
    "gradient_checkpointing_kwargs": None,
    "overwrite_output_dir": None,
    "plot_loss": None,
    "lr_scheduler_kwargs": None,
}
ADAPTER: dict[str, Convert | None] = {
    "lora_r": to("model.adapter.r"),
    "lora_rank": to("model.adapter.r"),
    "lora_alpha": to("model.adapter.alpha", float),
    "lora_dropout": to("model.adapter.dropout", float),
}
REASONS = {
    "push_to_hub": "`python -m smollit export --push_to_hub NAME` does it",
    "report_to": "`trainer.logger`: TensorBoard and metrics.csv by default, or `--trainer.logger WandbLogger`",
    "save_strategy": "checkpoints are counted in steps, and the last one is always saved",
    "eval_strategy": "validation is counted in steps",
    "do_train": NO_NEED,
    "do_eval": NO_NEED,
    "overwrite_output_dir": "a finished run is resumed or refused, never overwritten in silence",
    "plot_loss": "`python -m smollit report RUN` draws all curves",
    "gradient_checkpointing_kwargs": "checkpoints are never reentrant",
    "dataset_num_proc": "`data.num_proc` follows the number of cores",
    "attn_implementation": "`model.attention: auto` takes what is fast and exact on the device",
    "flash_attention": "`model.attention: auto` takes what is fast and exact on the device",
    "flash_attn": "`model.attention: auto` takes what is fast and exact on the device",
    "dataset_text_field": "`data.format: text` with `data.columns` names the column",
    "dataset_dir": "`data.dataset` takes a path",
    "preprocessing_num_workers": "`data.num_proc` follows the number of cores",
    "type": "formats are recognized from the rows: `python -m smollit inspect` shows which",
    "template": "the model's own chat template is used; `data.chat_template` names another",
    "padding_free": "documents never need padding here",
    "pad_to_sequence_len": "documents never need padding here",
}
TRL = Tool(
    "TRL",
    frozenset({"dataset_name", "beta", "loss_type", "completion_only_loss", "assistant_only_loss", "use_peft"}),
    {
        **TRANSFORMERS,
        **ADAPTER,
        "model_name_or_path": to("model.model_name"),
        "dataset_name": to("data.dataset"),
        "dataset_config": to("data.subset"),
        "dataset_train_split": to("data.train_split"),
        "dataset_test_split": to("data.val_split"),
        "max_length": to("data.max_length"),
        "max_seq_length": to("data.max_length"),
        "packing": flag("data.packing", "on"),
        "assistant_only_loss": flag("data.train_on", "assistant"),
        "completion_only_loss": flag("data.train_on", "assistant"),
        "beta": to("model.loss.beta", float),
        "loss_type": loss,
        "loss_weights": to("model.loss.weights"),
        "label_smoothing": to("model.loss.label_smoothing", float),
        "precompute_ref_log_probs": flag("model.reference", "precomputed"),
        "disable_dropout": flag("model.dropout", 0.0),
        "use_peft": flag("model.adapter", "LoRA"),
        "lora_target_modules": to("model.adapter.targets", lambda value: None if value == "all-linear" else value),
        "trust_remote_code": None,
        "dataset_num_proc": None,
        "attn_implementation": None,
        "dataset_text_field": None,
        "padding_free": None,
    },
    REASONS | {"trust_remote_code": "no code of a model folder is ever executed"},
    {
        "learning_rate": 2e-5,
        "num_train_epochs": 3,
        "max_length": 1024,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": True,
        "bf16": True,
        "seed": 42,
        "per_device_train_batch_size": 8,
        "logging_steps": 10,
    },
)
AXOLOTL = Tool(
    "axolotl",
    frozenset({"base_model", "micro_batch_size", "sequence_len", "sample_packing"}),
    {
        **TRANSFORMERS,
        **ADAPTER,
        "base_model": to("model.model_name"),
        "sequence_len": to("data.max_length"),
        "sample_packing": flag("data.packing", "on"),
        "micro_batch_size": to("data.train_batch_size"),
        "num_epochs": epochs,
        "lr_scheduler": schedule,
        "adapter": lambda value: {"model.adapter": "LoRA"} if value in ("lora", "qlora") else {},
        "lora_target_modules": to("model.adapter.targets"),
        "lora_target_linear": flag("model.adapter.targets", None),
        "val_set_size": splits("train"),
        "rl_beta": to("model.loss.beta", float),
        "wandb_project": None,
        "flash_attention": None,
        "pad_to_sequence_len": None,
    },
    REASONS | {"wandb_project": REASONS["report_to"]},
    {"num_epochs": 1, "micro_batch_size": 1, "seed": 42},
)
LLAMA_FACTORY = Tool(
    "LLaMA-Factory",
    frozenset({"stage", "finetuning_type", "cutoff_len", "template"}),
    {
        **TRANSFORMERS,
        **ADAPTER,
        "model_name_or_path": to("model.model_name"),
        "cutoff_len": to("data.max_length"),
        "packing": flag("data.packing", "on"),
        "dataset": to("data.dataset"),
        "max_samples": to("data.max_rows"),
        "val_size": splits("train"),
        "finetuning_type": lambda value: {"model.adapter": "LoRA"} if value == "lora" else {},
        "lora_target": to("model.adapter.targets", lambda value: None if value == "all" else str(value).split(",")),
        "pref_beta": to("model.loss.beta", float),
        "pref_loss": loss,
        "template": None,
        "flash_attn": None,
        "dataset_dir": None,
        "preprocessing_num_workers": None,
    },
    REASONS | {"dataset": "a name of dataset_info.json"},
    {"learning_rate": 5e-5, "num_train_epochs": 3, "cutoff_len": 2048, "max_grad_norm": 1.0, "seed": 42},
)
TOOLS = (AXOLOTL, LLAMA_FACTORY, TRL)
