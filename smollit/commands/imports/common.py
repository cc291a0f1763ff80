"""What the three tools share: transformers' TrainingArguments, LoRA, and why some settings have no counterpart."""

from collections.abc import Callable, Mapping
from typing import Any

from smollit.commands.imports.mapping import (
    Convert,
    Given,
    Settings,
    every,
    flag,
    if_adapter,
    number,
    positive,
    targets,
    to,
    vocabulary,
    whole,
)
from smollit.commands.imports.steps import (
    betas,
    epochs,
    eval_steps,
    eval_strategy,
    keep_best,
    max_steps,
    optimizer,
    optimizer_name,
    precision,
    schedule,
    schedule_options,
    warmup,
    warmup_ratio,
)


def main_branch(value: Any, given: Given) -> Settings:
    """The main branch of a model is the default."""
    if value != "main":
        raise ValueError("download this revision, and give its folder as `model.model_name`")
    return {}


TRANSFORMERS: dict[str, Convert] = {
    "output_dir": to("trainer.default_root_dir"),
    "learning_rate": to("model.learning_rate", number),
    "lr_scheduler_type": schedule,
    "lr_scheduler_kwargs": schedule_options,
    "warmup_ratio": warmup_ratio,
    "warmup_steps": warmup,
    "num_train_epochs": epochs,
    "max_steps": max_steps,
    "per_device_train_batch_size": to("data.train_batch_size", whole),
    "per_device_eval_batch_size": to("data.val_batch_size", whole),
    "gradient_accumulation_steps": to("trainer.accumulate_grad_batches", whole),
    "gradient_checkpointing": to("model.gradient_checkpointing", bool),  # axolotl has `offload` and more
    "max_grad_norm": positive("trainer.gradient_clip_val"),
    "optim": optimizer_name,
    "weight_decay": optimizer("weight_decay"),
    "adam_epsilon": optimizer("eps"),
    "adam_beta1": betas,
    "adam_beta2": betas,
    "bf16": precision,
    "fp16": flag("trainer.precision", "16-mixed"),
    "eval_strategy": eval_strategy,
    "evaluation_strategy": eval_strategy,
    "eval_steps": eval_steps,
    "save_steps": every("trainer.checkpoint_every_n_steps"),
    "save_total_limit": positive("trainer.keep_checkpoints"),
    "load_best_model_at_end": keep_best,
    "logging_steps": every("trainer.log_every_n_steps"),
    "seed": to("seed_everything", whole),
    "data_seed": to("data.seed", whole),
    "dataloader_num_workers": to("data.num_workers", whole),
    "group_by_length": to("data.group_by_length", bool),
    "torch_compile": to("model.compile", bool),
    "model_revision": main_branch,
}
LOGGER = "`trainer.logger`: TensorBoard and metrics.csv by default, or `--trainer.logger WandbLogger`"
ATTENTION = "`model.attention: auto` takes what is fast and exact on the device"
STRATEGY = "`trainer.strategy: fsdp` or `fsdp2`, and `trainer.devices`"
PADDING = "documents never need padding here"
HUB = "`python -m smollit export --push_to_hub NAME` does it"
CACHE = "tokenized rows are kept by their content in `data.cache_dir`"
PROCESSES = "`data.num_proc` follows the number of cores"
BEST = "`trainer.keep_best` keeps the best checkpoint, by a metric such as val/loss"
NO_NEED = "smollit has no need of it"
DTYPE = "weights are in fp32, unless `trainer.precision` ends in -true"
NO_CODE = "no code of a model folder is ever executed"
TOKENS = "`data.add_tokens: true` adds embeddings for tokens of `data.tokenizer_name`"
STOP = "the end of a turn is learned as the template writes it, and the export stops there"
EARLY_STOPPING = "add Lightning's EarlyStopping to `trainer.callbacks`"
BITS = "the frozen weights are stored in 4 bits or as they are: `model.quantize`"
ADAPTER_FOLDER = "`model.model_name` may be a folder with an adapter, which is merged first"
LIMIT = "`data.max_length` limits prompt and response together"
RESUME = "`--ckpt_path last` resumes a run"
COUNTED = "it is counted in optimizer steps"
REASONS = {
    "load_in_8bit": BITS,
    "bnb_4bit_quant_type": BITS,
    "neftune_noise_alpha": "add `callbacks.NEFTune` with its `alpha` to `trainer.callbacks`",
    "save_strategy": f"{COUNTED}: `trainer.checkpoint_every_n_steps`; the last step is always saved",
    "logging_strategy": f"{COUNTED}: `trainer.log_every_n_steps`",
    "metric_for_best_model": BEST,
    "greater_is_better": BEST,
    "overwrite_output_dir": "a finished run is resumed or refused, never overwritten in silence",
    "plot_loss": "`python -m smollit report RUN` draws all curves",
    "gradient_checkpointing_kwargs": "checkpoints are never reentrant",
    "dataset_num_proc": PROCESSES,
    "preprocessing_num_workers": PROCESSES,
    "dataset_text_field": "`data.format: text` with `data.columns` names the column",
    "template": "the model's own chat template is used; `data.chat_template` names another",
    "padding_free": PADDING,
    "pad_to_sequence_len": PADDING,
    "pad_to_multiple_of": PADDING,
    "use_liger_kernel": "`model.chunk_size` bounds the memory of the logits",
    "trust_remote_code": NO_CODE,
    "max_prompt_length": LIMIT,
    "max_completion_length": LIMIT,
    "truncation_mode": "`data.truncate` says what is truncated, or dropped",
    "resume_from_checkpoint": RESUME,
    "auto_resume_from_checkpoints": RESUME,
    "early_stopping_patience": EARLY_STOPPING,
    "tf32": "`trainer.precision` says how matrix products are computed",
    "average_tokens_across_devices": "a step is always the mean over all its tokens",
    "remove_unused_columns": "`inspect` names columns that are not used",
    "adapter_name_or_path": ADAPTER_FOLDER,
    "lora_model_dir": ADAPTER_FOLDER,
    "eos_token": STOP,
    "eot_tokens": STOP,
    "special_tokens": f"the model's own are used; {TOKENS}",
    "tokens": TOKENS,
    "router_aux_loss_coef": "the auxiliary loss of experts is not part of the loss",
    "unfrozen_parameters": "all weights are trained, or an adapter",
    "do_train": NO_NEED,
    "do_eval": "there is validation if `data.val_split` names a split",
    "ddp_timeout": NO_NEED,
    "run_name": "a run is named after its folder, `trainer.default_root_dir`",
}
# By the beginning of a name.
FAMILIES = {
    (
        "report_to",
        "wandb_",
        "mlflow_",
        "comet_",
        "swanlab_",
        "use_swanlab",
        "log_level",
        "logging_",
        "trackio_",
    ): LOGGER,
    ("fsdp", "deepspeed", "ddp_", "dp_", "tensor_parallel", "context_parallel", "ray_"): STRATEGY,
    ("push_to_hub", "hub_"): HUB,
    ("attn_impl", "flash_att", "use_flash_att", "xformers_", "sdp_", "flex_", "s2_", "eager_"): ATTENTION,
    ("dataset_prepared", "overwrite_cache", "tokenized_path", "preprocessing_", "skip_prepare"): CACHE,
    ("torch_dtype", "dtype", "bfloat16", "float16"): DTYPE,
    ("save_", "eval", "logging"): f"{COUNTED}; `python -m smollit fit --help` has the settings of the trainer",
}
ANYTHING = "smollit has no such setting"


def why_not(name: str, reasons: Mapping[str, str]) -> str:
    """Why a setting has no counterpart; `reasons` are those of a tool."""
    known = {**REASONS, **reasons}
    by_family = (why for beginnings, why in FAMILIES.items() if name.startswith(beginnings))
    return known[name] if name in known else next(by_family, ANYTHING)


def lora_settings(is_trained: Callable[[Given], bool]) -> dict[str, Convert]:
    """Settings of LoRA, by their name in all three.

    Args:
        is_trained: Whether an adapter is trained, for given settings.
    """
    converts: dict[str, Convert] = {
        "lora_r": to("model.adapter.r", whole),
        "lora_rank": to("model.adapter.r", whole),
        "lora_alpha": to("model.adapter.alpha", number),
        "lora_dropout": to("model.adapter.dropout", number),
        "lora_target_modules": targets,
        "lora_target": targets,
        "lora_target_linear": lambda value, given: {},  # smollit's default
        "lora_modules_to_save": vocabulary,
        "additional_target": vocabulary,
        "use_rslora": lambda value, given: {},  # the kind of the adapter says it
        "use_dora": lambda value, given: {},
        "peft_use_rslora": lambda value, given: {},
        "peft_use_dora": lambda value, given: {},
        "load_in_4bit": lambda value, given: {"model.quantize": "nf4"},
    }
    return {name: if_adapter(convert, is_trained) for name, convert in converts.items()}
