"""The settings of axolotl as those of smollit."""

from typing import Any

from smollit.commands.imports.common import LOGGER, NO_NEED, TRANSFORMERS, lora_settings
from smollit.commands.imports.mapping import (
    Given,
    Method,
    Settings,
    Tool,
    dft,
    flag,
    if_reference,
    is_on,
    lora,
    loss_argument,
    losses_of,
    named,
    number,
    of_chats,
    smoothing,
    to,
    whole,
)
from smollit.commands.imports.steps import epochs, optimizer_name, schedule

LOSSES = {"dpo": "DPO", "ipo": "IPO", "orpo": "ORPO", "simpo": "SimPO"}
BETAS = ("rl_beta", "dpo_beta", "orpo_alpha")
OWN_TEMPLATE = "the model's own chat template is used; `data.chat_template` takes the path of a Jinja file"


def method(given: Given) -> Method:
    """DPO, if `rl` names one of its losses."""
    for name in ("reward_model", "process_reward_model"):
        if is_on(given.get(name)):
            raise ValueError(f"`{name}` has no counterpart: smollit trains by SFT and by DPO")
    kind = given.get("rl")
    if kind and kind not in LOSSES:
        raise ValueError(f"`rl: {kind}` has no counterpart: smollit trains by SFT and by DPO ({', '.join(LOSSES)})")
    return "DPO" if kind else "SFT"


def losses(given: Given) -> list[str]:
    """The names of the losses, as smollit has them."""
    if method(given) == "SFT":
        return ["DFT" if is_on(given.get("use_dft")) else "NLL"]
    if given["rl"] == "dpo" and is_on(given.get("dpo_use_weighting")) and not given.get("rpo_alpha"):
        return ["WPO"]
    return [LOSSES[given["rl"]]]


def has_adapter(given: Given) -> bool:
    """Whether an adapter is trained."""
    return given.get("adapter") in ("lora", "qlora")


def adapter(value: Any, given: Given) -> Settings:
    """LoRA, with weights as they are or in 4 bits."""
    if value and value not in ("lora", "qlora"):
        raise ValueError("`model.adapter` takes any method of peft that changes layers in place, by its class: Peft")
    return {"model.adapter": lora(given)} if value else {}


def template(value: Any, given: Given) -> Settings:
    """The model's own template, or ChatML; the text of another becomes a file."""
    if value in ("tokenizer_default", "chatml", "tokenizer_default_fallback_chatml"):
        return {"data.chat_template": "chatml" if value == "chatml" else "auto"}
    if value == "jinja":
        return {}
    raise ValueError(OWN_TEMPLATE)


def defaults(given: Given) -> Settings:
    """axolotl's own, and those of transformers."""
    found: Settings = {
        "num_epochs": 1,
        "micro_batch_size": 1,
        "seed": 42,
        "lr_scheduler": "cosine",
        "max_grad_norm": 1.0,
        "sequence_len": 512,
        "val_set_size": 0.0,
    }
    if given.get("warmup_steps") is None:
        found["warmup_ratio"] = 0.03
    if given.get("test_datasets"):
        del found["val_set_size"]
    if given.get("eval_batch_size") is None:
        found["eval_batch_size"] = given.get("micro_batch_size") or 1
    layers = named(given, "lora_target_modules", "lora_target_linear")
    if has_adapter(given) and not layers:
        found["lora_target_modules"] = ["q_proj", "v_proj"]
    if method(given) == "DPO":
        found |= {} if named(given, *BETAS) is not None else {"rl_beta": 0.1}
    if given.get("rl") == "simpo":
        found |= {"simpo_gamma": 0.5, "cpo_alpha": 1.0}
    return found


def beta(value: Any, given: Given) -> Settings:
    """Beta of the loss, by any of its names; the first of them counts."""
    return loss_argument("beta", losses)(named(given, *BETAS), given)


def cpo_alpha(value: Any, given: Given) -> Settings:
    """The weight of the negative log-likelihood in SimPO, which is CPO in TRL."""
    if losses(given) != ["SimPO"]:
        raise ValueError("it has no effect there: it is of `rl: simpo`")
    return {"model.loss.nll_weight": number(value)}


def rpo_alpha(value: Any, given: Given) -> Settings:
    """The weight of the negative log-likelihood in DPO and IPO; ORPO and SimPO have their own."""
    if given.get("rl") not in ("dpo", "ipo"):
        raise ValueError("it has no effect there: it is of `rl: dpo` and `rl: ipo`")
    return {"model.loss.nll_weight": number(value)}


def weighting(value: Any, given: Given) -> Settings:
    """The weights of WPO, which TRL has for all losses and smollit for DPO."""
    if is_on(value) and losses(given) != ["WPO"]:
        raise ValueError("`model.loss: WPO` is `rl: dpo` with it, and goes with no other loss, nor with `rpo_alpha`")
    return {"model.loss": "WPO"} if is_on(value) else {}


def batch_size(value: Any, given: Given) -> Settings:
    """Rows of a step on one device, where the number of micro-batches is not given."""
    if given.get("gradient_accumulation_steps") is not None:
        raise ValueError("it has no effect there: `gradient_accumulation_steps` comes first")
    micro_batches = whole(value) // whole(given["micro_batch_size"])
    return {"trainer.accumulate_grad_batches": max(1, micro_batches)}


def cosine_floor(value: Any, given: Given) -> Settings:
    """The floor of a cosine, and of no other schedule."""
    if given["lr_scheduler"] != "cosine":
        raise ValueError(f"it has no effect there: the schedule is `{given['lr_scheduler']}`")
    return {"model.schedule.floor": number(value)}


TABLE = {
    **TRANSFORMERS,
    **lora_settings(has_adapter),
    "label_smoothing_factor": smoothing(losses),
    "load_in_4bit": lambda value, given: {"model.quantize": "nf4-dq"} if value else {},
    "base_model": to("model.model_name"),
    "sequence_len": to("data.max_length", whole),
    "sample_packing": flag("data.packing", "on"),
    "batch_size": batch_size,
    "micro_batch_size": to("data.train_batch_size", whole),
    "eval_batch_size": to("data.val_batch_size", whole),
    "num_epochs": epochs,
    "lr_scheduler": schedule,
    "cosine_min_lr_ratio": cosine_floor,
    "optimizer": optimizer_name,
    "adapter": adapter,
    "chat_template": template,
    "chat_template_jinja": to("data.chat_template"),
    "train_on_inputs": of_chats("all", method),
    "use_dft": dft(losses),
    "rl": lambda value, given: losses_of(losses(given)),
    "rl_beta": beta,
    "dpo_beta": beta,
    "orpo_alpha": beta,
    "simpo_gamma": loss_argument("gamma", losses),
    "cpo_alpha": cpo_alpha,
    "rpo_alpha": rpo_alpha,
    "dpo_label_smoothing": loss_argument("label_smoothing", losses),
    "dpo_use_weighting": weighting,
    "precompute_ref_log_probs": if_reference(flag("model.reference", "precomputed"), losses),
    "streaming": to("data.streaming", bool),
    "gradient_checkpointing": lambda value, given: {"model.gradient_checkpointing": bool(value)},
}
AXOLOTL = Tool(
    "axolotl",
    frozenset({"base_model", "rl", "micro_batch_size", "sequence_len", "sample_packing"}),
    TABLE,
    method,
    defaults,
    {
        "wandb_project": LOGGER,
        "eval_sample_packing": "packed or not, the metrics of validation are the same",
        "evals_per_epoch": "`trainer.val_check_interval: 0.25` validates 4 times in an epoch",
        "saves_per_epoch": "it is counted in optimizer steps: `trainer.checkpoint_every_n_steps`",
        "model_type": "the model's config.json names its class",
        "tokenizer_type": "the tokenizer's files name its class",
        "strict": NO_NEED,
        "roles_to_train": "`data.train_on` says which turns count in the loss",
    },
)
