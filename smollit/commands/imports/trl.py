"""The settings of TRL, and of a TrainingArguments JSON, as those of smollit."""

from typing import Any

from smollit.commands.imports.common import TRANSFORMERS, lora_settings
from smollit.commands.imports.mapping import (
    Given,
    Method,
    Settings,
    Tool,
    flag,
    if_reference,
    is_on,
    lora,
    loss_argument,
    smoothing,
    to,
    whole,
)
from smollit.commands.imports.steps import OFF, evaluates
from smollit.commands.imports.trl_losses import (
    DIVERGENCES,
    OF_CPO,
    change,
    cpo_alpha,
    divergence_alpha,
    is_cpo,
    label_smoothing,
    loss,
    loss_types,
    loss_weights,
    objective,
    precomputed,
    rpo_alpha,
)

SFT_LOSSES = {"nll": "NLL", "chunked_nll": "NLL", "dft": "DFT"}
# What only DPOConfig has, and what only configs of other trainers have.
OF_PAIRS = (
    "beta",
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "ref_model_name_or_path",
    "loss_weights",
    "label_smoothing",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "max_prompt_length",
    "max_completion_length",
    "sync_ref_model",
    "rpo_alpha",
    "disable_dropout",
    "ld_alpha",
    "use_weighting",
    *OF_CPO,
)
OTHER_TRAINERS = {
    "num_generations": "GRPO",
    "desirable_weight": "KTO",
    "center_rewards_coefficient": "a reward model",
    "num_ppo_epochs": "PPO",
    "lmbda": "distillation (GKD)",
}


def method(given: Given) -> Method:
    """DPO, if a setting of preferences is there."""
    for name, kind in OTHER_TRAINERS.items():
        if given.get(name) is not None:
            raise ValueError(f"`{name}` is of {kind}, which smollit does not have: it trains by SFT and by DPO")
    loss_type = given.get("loss_type")
    of_pairs = isinstance(loss_type, list) or (loss_type is not None and loss_type not in SFT_LOSSES)
    if not of_pairs and all(given.get(name) is None for name in OF_PAIRS):
        return "SFT"
    objective(given)  # refuses losses that smollit lacks
    return "DPO"


def losses(given: Given) -> list[str]:
    """The names of the losses, as smollit has them."""
    if method(given) == "SFT":
        return [SFT_LOSSES[given.get("loss_type", "nll")]]
    return objective(given).losses


def defaults(given: Given) -> Settings:
    """TRL's own, and peft's layers for Llama-like models."""
    found: Settings = {
        "learning_rate": 2e-5 if method(given) == "SFT" else 1e-6,
        "num_train_epochs": 3,
        "max_length": 1024,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": True,
        "bf16": True,
        "seed": 42,
        "per_device_train_batch_size": 8,
        "logging_steps": 10,
    }
    if given.get("fp16"):
        del found["bf16"]
    if given.get("dataset_name"):
        found["dataset_train_split"] = "train"
    if evaluates(given) and given.get("dataset_name"):
        found["dataset_test_split"] = "test"
    if not evaluates(given) and not given.get("dataset_test_split"):
        found["eval_strategy"] = "no"
    if is_on(given.get("use_peft")):
        found |= {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": ["q_proj", "v_proj"]}
    if method(given) == "DPO":
        found |= {"loss_type": "sigmoid", "beta": 0.1}
        found |= {"cpo_alpha": 1.0} if is_cpo(given) else {}
        found |= {"simpo_gamma": 0.5} if losses(given) == ["SimPO"] else {}
        found |= {"label_smoothing": 0.0} if "robust" in loss_types(given) else {}  # ours is 0.1
    elif not {"assistant_only_loss", "completion_only_loss"} & given.keys():
        found["assistant_only_loss"] = False
    return found


def loss_type(value: Any, given: Given) -> Settings:
    """The loss, with all that changes it."""
    return {"model.loss": losses(given)[0]} if method(given) == "SFT" else loss(given)


def max_length(value: Any, given: Given) -> Settings:
    """Tokens of a row."""
    if value is None:
        raise ValueError("there is always a limit here: `data.max_length`, which is 2048 unless you set it")
    return {"data.max_length": whole(value)}


def test_split(value: Any, given: Given) -> Settings:
    """The split to validate on, unless validation is off."""
    if given.get("eval_strategy", value) in OFF:
        raise ValueError("it has no effect there: there is no validation")
    return {"data.val_split": value}


def train_on(value: Any, given: Given) -> Settings:
    """The part of chats that the loss counts: all, unless one of two switches is on."""
    masks = is_on(given.get("assistant_only_loss")) or is_on(given.get("completion_only_loss"))
    return {"data.train_on": "assistant" if masks else "all"}


def has_adapter(given: Given) -> bool:
    """Whether an adapter is trained."""
    return is_on(given.get("use_peft"))


TABLE = {
    **TRANSFORMERS,
    **lora_settings(has_adapter),
    "label_smoothing_factor": smoothing(losses),
    "model_name_or_path": to("model.model_name"),
    "ref_model_name_or_path": if_reference(to("model.reference_name"), losses),
    "dataset_name": to("data.dataset"),
    "dataset_config": to("data.subset"),
    "dataset_train_split": to("data.train_split"),
    "dataset_test_split": test_split,
    "dataset_streaming": to("data.streaming", bool),
    "streaming": to("data.streaming", bool),
    "max_length": max_length,
    "max_seq_length": max_length,
    "packing": flag("data.packing", "on"),
    "assistant_only_loss": train_on,
    "completion_only_loss": train_on,
    "loss_type": loss_type,
    "loss_weights": loss_weights,
    "beta": loss_argument("beta", losses),
    "label_smoothing": label_smoothing,
    "discopop_tau": loss_argument("tau", losses),
    "simpo_gamma": loss_argument("gamma", losses),
    "cpo_alpha": cpo_alpha,
    "rpo_alpha": rpo_alpha,
    "ld_alpha": change("ld_alpha", "alpha"),
    "use_weighting": change("use_weighting"),
    "f_divergence_type": change("f_divergence_type", "divergence", DIVERGENCES.get),
    "f_alpha_divergence_coef": divergence_alpha,
    "precompute_ref_log_probs": if_reference(precomputed, losses),
    "disable_dropout": lambda value, given: {"model.dropout": 0.0 if value else None},
    "use_peft": lambda value, given: {"model.adapter": lora(given)} if value else {},
    "load_in_4bit": lambda value, given: (
        {"model.quantize": "nf4-dq" if is_on(given.get("use_bnb_nested_quant")) else "nf4"} if value else {}
    ),
    "use_bnb_nested_quant": lambda value, given: {},  # with `load_in_4bit`
}
TRL = Tool(
    "TRL",
    frozenset(
        {"dataset_name", "dataset_mixture", "dataset_mixer", "loss_type", "completion_only_loss", "assistant_only_loss"}
    )
    | {*OF_PAIRS, "use_peft"},
    TABLE,
    method,
    defaults,
    {
        "sync_ref_model": "add `callbacks.SyncReference` to `trainer.callbacks`",
        "ref_model_mixup_alpha": "it is `weight` of `callbacks.SyncReference`",
        "ref_model_sync_steps": "it is `every_n_steps` of `callbacks.SyncReference`",
        "model_init_kwargs": "`model.attention` and `trainer.precision` say how a model is loaded",
        "chat_template_path": "`data.chat_template` takes the path of a Jinja file",
        "chat_template": "`data.chat_template` takes the path of a Jinja file",
        "packing_strategy": "`data.packing` splits nothing, and fills sequences by length",
        "eval_packing": "packed or not, the metrics of validation are the same",
    },
)
