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
SCHEDULED = ("params", "lr", "initial_lr")
# Settings that change the meaning of the saved state: a resumed run may not change them, nor those that the data module
# names in `token_settings` and `order_settings`.
FIXED = (
    "model.class_path",
    "model.init_args.model_name",
    "model.init_args.reference_name",
    "model.init_args.optimizer.class_path",
    "data.class_path",
)


def fixed_settings(trainer: Trainer) -> tuple[str, ...]:
    """Settings that a resumed run may not change."""
    data = described_data(trainer)
    names = (*data.token_settings, *data.order_settings) if data else ()
    return (*FIXED, *(f"data.init_args.{name}" for name in names))


def check_settings(saved: State, settings: State, never: tuple[str, ...], *, force: bool) -> None:
    """Log the settings that differ from those that the run began with, and refuse changes that are not allowed.

    Raises:
        ValueError: If a setting in `never` has changed, unless forced.
    """
    before, now = flatten(upgraded_schedule(upgraded(saved))), flatten(settings)
    changed = {key: (before.get(key), now.get(key)) for key in before | now if before.get(key) != now.get(key)}
    if not before or not now or not changed:
        return
    lines = [f"  {key}: {old!r} -> {new!r}" for key, (old, new) in sorted(changed.items())]
    log.warning("settings that differ from those the run began with:\n%s", "\n".join(lines))
    fixed = [key for key in changed if f"{key}.".startswith(tuple(f"{name}." for name in never))]
    if fixed and not force:
        raise ValueError(
            f"a resumed run can't change {', '.join(fixed)}:\n" + "\n".join(lines) + "\nStart a new run in another"
            " `trainer.default_root_dir`, or set `trainer.force_resume: true` if you know that they are the same"
        )


def flatten(config: State, prefix: str = "") -> State:
    """Nested settings -> {"model.init_args.beta": 0.1, ...}."""
    flat: State = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


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
