"""`model.loss` as settings: short names, the plain form in checkpoints, and settings of version 0.1."""

import math
from collections.abc import Mapping
from typing import Any

import torch

import smollit.losses as shipped
from smollit.choices import Choice, Settings, defaults
from smollit.functional.pairs import Pairs
from smollit.losses.base import CompletionLoss, PreferenceLoss

Loss = PreferenceLoss | CompletionLoss
FAMILIES: tuple[type[Loss], ...] = (PreferenceLoss, CompletionLoss)
# TRL's names.
ALIASES = {
    "sigmoid": "DPO",
    "sigmoid_norm": "LNDPO",
    "exo_pair": "EXO",
    "nca_pair": "NCA",
    "bco_pair": "BCO",
    "sppo_hard": "SPPO",
    "aot_unpaired": "AOTUnpaired",
    "apo_zero": "APOZero",
    "apo_down": "APODown",
}
LOSS = Choice(setting="model.loss", families=FAMILIES, shipped=shipped, aliases=ALIASES, nested="losses")
# Settings of the module in version 0.1 that are now arguments of the loss.
MOVED = ("beta", "label_smoothing", "nll_weight", "scores", "score_scale")


def preference_loss(value: PreferenceLoss | str | Settings) -> PreferenceLoss:
    """A loss of the DPO family, from an instance, its name, or its settings as a checkpoint stores them.

    Raises:
        ValueError: If it is no such loss.
    """
    loss = LOSS.make(value)
    if not isinstance(loss, PreferenceLoss):
        raise ValueError(f"`model.loss` of DPO must be a PreferenceLoss, got {type(loss).__name__}")
    return loss


def completion_loss(value: CompletionLoss | str | Settings) -> CompletionLoss:
    """A loss of the SFT family, from an instance, its name, or its settings as a checkpoint stores them.

    Raises:
        ValueError: If it is no such loss.
    """
    loss = LOSS.make(value)
    if not isinstance(loss, CompletionLoss):
        raise ValueError(f"`model.loss` of SFT must be a CompletionLoss, got {type(loss).__name__}")
    return loss


def starts_at_ln_2(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of a module say that its loss is ln 2 on any pairs, before the first step.

    So it is for a policy that starts as its reference, by a shipped loss that is ln 2 where the log-ratios are 0.
    """
    starts_as_reference = settings.get("reference_name") in (None, settings.get("model_name"))
    named = settings.get("loss")
    is_shipped = isinstance(named, Mapping) and str(named.get("class_path")).startswith(f"{shipped.__name__}.")
    is_random = "init_lora_weights" in str(settings.get("adapter"))  # of peft: LoRA begins as no change, unless told
    if not starts_as_reference or settings.get("init_from") or is_random or not is_shipped:
        return False
    try:
        loss = LOSS.make(named)
    except ValueError:  # of another version
        return False
    if not isinstance(loss, PreferenceLoss):
        return False
    same, ones = torch.tensor([[-5.0, -7.0]]), torch.ones(1, 2)
    extra = {"score_gap": ones[:, 0], "common_policy": same, "common_reference": same, "relative_logps": -ones}
    value, _ = loss(Pairs(same, same, ones, ones, **extra))
    return math.isclose(float(value), math.log(2), rel_tol=1e-6)


def from_version_0_1(settings: Mapping[str, Any]) -> Settings:
    """Settings of a module of version 0.1, with those that are now arguments of its loss moved into `loss`.

    Settings of later versions are returned as they are.
    """
    moved = {key: settings[key] for key in MOVED if key in settings}
    name = settings.get("loss", "sigmoid")
    if not moved or not isinstance(name, str):
        return dict(settings)
    loss = LOSS.find(name)
    arguments = {key: value for key, value in moved.items() if key in defaults(loss)}
    rest = {key: value for key, value in settings.items() if key not in MOVED}
    return rest | {"loss": {"class_path": LOSS.class_path(loss), "init_args": arguments}}


def upgraded(config: Mapping[str, Any]) -> Settings:
    """A run's settings in a checkpoint, {"model": {"class_path", "init_args"}, ...}, in the current spelling."""
    model = config.get("model")
    if not isinstance(model, Mapping) or "init_args" not in model:
        return dict(config)
    return {**config, "model": {**model, "init_args": from_version_0_1(model["init_args"])}}


def moved_settings(settings: Mapping[str, Any]) -> str:
    """The error message for settings of version 0.1, with the new spelling to paste."""
    loss = from_version_0_1(settings)["loss"]
    named = ", ".join(f"`model.{key}`" for key in MOVED if key in settings)
    yaml = [f"        {key}: {value}" for key, value in loss["init_args"].items()]
    words = [f"--model.loss.{key} {value}" for key, value in loss["init_args"].items()]
    name = loss["class_path"].rpartition(".")[2]
    return "\n".join(
        [
            f"{named} moved into `model.loss`. In YAML, below `model.init_args`, write",
            "    loss:",
            f"      class_path: {loss['class_path']}",
            *(["      init_args:", *yaml] if yaml else []),
            f"On the command line: {' '.join([f'--model.loss {name}', *words])}",
        ]
    )
