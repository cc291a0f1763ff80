"""The settings of LLaMA-Factory as those of smollit."""

from typing import Any

from smollit.commands.imports.common import ADAPTER_FOLDER, NO_NEED, TRANSFORMERS, lora_settings
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
    number,
    of_chats,
    smoothing,
    to,
    whole,
)

LOSSES = {"sigmoid": "DPO", "hinge": "Hinge", "ipo": "IPO", "orpo": "ORPO", "simpo": "SimPO"}


def method(given: Given) -> Method:
    """The stage: texts and chats are SFT."""
    stage = given.get("stage") or "sft"
    if stage not in ("pt", "sft", "dpo"):
        raise ValueError(f"`stage: {stage}` has no counterpart: smollit trains by SFT (pt, sft) and by DPO")
    if stage == "dpo" and given.get("pref_loss", "sigmoid") not in LOSSES:
        raise ValueError(f"`pref_loss: {given['pref_loss']}` has no counterpart: smollit has {', '.join(LOSSES)}")
    return "DPO" if stage == "dpo" else "SFT"


def losses(given: Given) -> list[str]:
    """The names of the losses, as smollit has them."""
    if method(given) == "SFT":
        return ["DFT" if is_on(given.get("use_dft_loss")) else "NLL"]
    return [LOSSES[given.get("pref_loss", "sigmoid")]]


def has_adapter(given: Given) -> bool:
    """Whether an adapter is trained."""
    return given.get("finetuning_type", "lora") == "lora"


def finetuning_type(value: Any, given: Given) -> Settings:
    """An adapter, or all weights."""
    if value == "oft":
        raise ValueError("`model.adapter: Peft` with peft.OFTConfig is that method")
    if value == "freeze":
        raise ValueError("all weights are trained, or an adapter: `model.adapter`")
    return {"model.adapter": lora(given)} if value == "lora" else {}


def likelihood(value: Any, given: Given) -> Settings:
    """The weight of the negative log-likelihood, which ORPO has once already."""
    if method(given) == "SFT":
        raise ValueError("it has no effect there: it is of `stage: dpo`")
    return {"model.loss.nll_weight": number(value) + (1.0 if losses(given) == ["ORPO"] else 0.0)}


def four_bits(value: Any, given: Given) -> Settings:
    """A number of bits of the frozen weights."""
    if value != 4:
        raise ValueError("the frozen weights are stored in 4 bits or as they are: `model.quantize`")
    return {"model.quantize": "nf4-dq" if given.get("double_quantization", True) else "nf4"}


def defaults(given: Given) -> Settings:
    """LLaMA-Factory's own."""
    found: Settings = {
        "learning_rate": 5e-5,
        "num_train_epochs": 3,
        "cutoff_len": 2048,
        "max_grad_norm": 1.0,
        "seed": 42,
        "finetuning_type": "lora",
        "val_size": 0.0,
    }
    if given.get("eval_dataset"):
        del found["val_size"]
    if has_adapter(given):
        found |= {"lora_rank": 8, "lora_alpha": 2 * whole(given.get("lora_rank") or 8)}
    if method(given) == "DPO":
        found |= {"pref_loss": "sigmoid", "pref_beta": 0.1}
        found |= {"simpo_gamma": 0.5} if given.get("pref_loss") == "simpo" else {}
    return found


TABLE = {
    **TRANSFORMERS,
    **lora_settings(has_adapter),
    "label_smoothing_factor": smoothing(losses),
    "quantization_bit": four_bits,
    "model_name_or_path": to("model.model_name"),
    "ref_model": if_reference(to("model.reference_name"), losses),
    "stage": lambda value, given: {"data.format": "text"} if value == "pt" else {},
    "cutoff_len": to("data.max_length", whole),
    "packing": flag("data.packing", "on"),
    "neat_packing": flag("data.packing", "on"),
    "max_samples": to("data.max_rows", whole),
    "train_on_prompt": of_chats("all", method),
    "mask_history": of_chats("last", method),
    "streaming": to("data.streaming", bool),
    "buffer_size": to("data.shuffle_buffer", whole),
    "default_system": to("data.default_system"),
    "enable_thinking": lambda value, given: {"data.chat_template_kwargs": {"enable_thinking": value}},
    "finetuning_type": finetuning_type,
    "use_dft_loss": dft(losses),
    "pref_loss": lambda value, given: losses_of(losses(given)) if method(given) == "DPO" else {},
    "pref_beta": loss_argument("beta", losses),
    "pref_ftx": likelihood,
    "simpo_gamma": loss_argument("gamma", losses),
    "dpo_label_smoothing": loss_argument("label_smoothing", losses),
    "pure_bf16": flag("trainer.precision", "bf16-true"),
    "disable_gradient_checkpointing": lambda value, given: {"model.gradient_checkpointing": not value},
}
LLAMA_FACTORY = Tool(
    "LLaMA-Factory",
    frozenset({"stage", "finetuning_type", "cutoff_len", "template", "pref_loss", "pref_beta"}),
    TABLE,
    method,
    defaults,
    {
        "ld_alpha": "it discounts tokens of the policy alone there: `model.loss: LDDPO` does of the reference too",
        "create_new_adapter": ADAPTER_FOLDER,
        "quantization_method": "weights in 4 bits are those of bitsandbytes",
        "double_quantization": "it is `model.quantize: nf4-dq`, with `quantization_bit: 4`",
        "save_only_model": "checkpoints hold all that a resumed run needs",
        "dataset_dir": "`data.dataset` takes a path",
        "do_predict": NO_NEED,
    },
)
