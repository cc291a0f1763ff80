"""Settings on resume: which may not change, which are logged, and the optimizer's, where the config wins."""

import logging
from typing import Any

from lightning.pytorch import Trainer

from smollit.losses.settings import upgraded
from smollit.schedules import upgraded_schedule
from smollit.training.steps import described_data

log = logging.getLogger(__name__)
State = dict[str, Any]

Groups = list[dict[str, Any]]
PLAIN = (bool, int, float, str, tuple, type(None))
SEED = "data.seed"  # null takes the seed that the run began with
SCHEDULED = ("params", "lr", "initial_lr")
# Settings that change the meaning of the saved state: a resumed run may not change them, nor those that the data module
# names in `token_settings` and `order_settings`. Classes may have settings below them that may change.
FIXED_CLASSES = ("model", "model.optimizer", "data")
FIXED = ("model.model_name", "model.reference_name", "model.adapter", "model.quantize")
# Settings of a start, not of the run.
OF_A_START = {"trainer.default_root_dir", "trainer.force_resume"}


def fixed_settings(trainer: Trainer) -> tuple[str, ...]:
    """Settings that a resumed run may not change, with all that is below them."""
    data = described_data(trainer)
    names = (*data.token_settings, *data.order_settings) if data else ()
    return (*FIXED, *(f"data.{name}" for name in names))


def check_settings(saved: State, settings: State, never: tuple[str, ...], *, force: bool) -> None:
    """Log the settings that differ from those that the run began with, and refuse changes that are not allowed.

    What only one side has is not compared: sections (a run from Python has the trainer's alone), and settings that are
    newer than the run.

    Raises:
        ValueError: If a setting in `never` has changed, unless forced.
    """
    before, now = as_typed(upgraded_schedule(upgraded(saved))), as_typed(settings)
    if now.get(SEED) is None:
        before.pop(SEED, None)
    sections = {name.partition(".")[0] for name in before} & {name.partition(".")[0] for name in now}
    # Later versions have more settings, whose defaults change nothing. From Python, a trainer's defaults are not known.
    had = {setting_of(name) for name in before} | {name for name in now if name.startswith("trainer.")}
    changed = {
        name: f"`{name}` ({before.get(name)!r} -> {now.get(name)!r})"
        for name in sorted((before | now).keys() - OF_A_START)
        if before.get(name) != now.get(name) and name.partition(".")[0] in sections and setting_of(name) in had
    }
    if not changed:
        return
    log.warning("settings that differ from those the run began with: %s", ", ".join(changed.values()))
    below = tuple(f"{name}." for name in never)
    fixed = [text for name, text in changed.items() if name in FIXED_CLASSES or f"{name}.".startswith(below)]
    if fixed and not force:
        raise ValueError(
            f"a resumed run can't change {', '.join(fixed)}: start a new run in another `trainer.default_root_dir`, or"
            " set `trainer.force_resume: true` if you know that they mean the same"
        )


def setting_of(name: str) -> str:
    """model.loss.beta -> model.loss: an argument of a class, of the module, the data module or the trainer."""
    return ".".join(name.split(".")[:2])


def as_typed(config: State, prefix: str = "") -> State:
    """Nested settings -> {"model": class, "model.loss.beta": 0.1, ...}, under the names that a user types."""
    flat: State = {}
    for key, value in config.items():
        name = prefix if key in ("class_path", "init_args") else f"{prefix}.{key}".lstrip(".")
        flat |= as_typed(value, name) if isinstance(value, dict) else {name: value}
    return flat


def plain_settings(options: State) -> State:
    """The settings of a trainer that a checkpoint can hold: numbers, texts, and lists and dicts of them."""
    return {name: value for name, value in options.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def configured(trainer: Trainer) -> list[Groups]:
    """Per optimizer and group: weight decay, betas and the like, as configured.

    To be called before a checkpoint's state is loaded.
    """
    return [
        [
            {key: value for key, value in group.items() if key not in SCHEDULED and isinstance(value, PLAIN)}
            for group in optimizer.param_groups
        ]
        for optimizer in trainer.optimizers
    ]


def check_groups(before: list[Groups], now: list[Groups]) -> None:
    """Refuse other groups of weights than the saved state of the optimizer has.

    Raises:
        ValueError: If their numbers differ.
    """
    saved, wanted = ([len(groups) for groups in optimizers] for optimizers in (before, now))
    if before and now and saved != wanted:
        raise ValueError(
            f"the run began with {saved} groups of weights in its optimizers, and now has {wanted}: give the"
            " `model.learning_rate_factors` and `model.decay_all` of its start. Before version 0.3, all weights had"
            " weight decay, as with `model.decay_all: true`"
        )


def apply_changes(trainer: Trainer, before: list[Groups], now: list[Groups]) -> None:
    """Set the values that were configured differently when the run began; the optimizer's other entries stay.

    The learning rates are the module's, `LearningRates.start`.
    """
    for optimizer, old_groups, new_groups in zip(trainer.optimizers, before, now, strict=False):
        for group, old, new in zip(optimizer.param_groups, old_groups, new_groups, strict=False):
            group.update({key: value for key, value in new.items() if key in old and old[key] != value})
