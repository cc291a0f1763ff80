"""Settings of the optimizer on resume: what the config now says wins over what the checkpoint holds."""

from typing import Any

from lightning.pytorch import Trainer

Groups = list[dict[str, Any]]
PLAIN = (bool, int, float, str, tuple, type(None))


def configured(trainer: Trainer) -> list[Groups]:
    """Per optimizer and group: weight decay, betas, peak learning rate (`initial_lr`) and the like, as configured.

    To be called before a checkpoint's state is loaded.
    """
    return [
        [
            {key: value for key, value in group.items() if key not in ("params", "lr") and isinstance(value, PLAIN)}
            for group in optimizer.param_groups
        ]
        for optimizer in trainer.optimizers
    ]


def apply_changes(trainer: Trainer, before: list[Groups], now: list[Groups]) -> None:
    """Set what was configured differently when the run began; the optimizer's own notes in its groups stay.

    A new peak learning rate scales the current one: the place in the schedule is the same.
    """
    for optimizer, old_groups, new_groups in zip(trainer.optimizers, before, now, strict=False):
        for group, old, new in zip(optimizer.param_groups, old_groups, new_groups, strict=False):
            changed = {key: value for key, value in new.items() if key in old and old[key] != value}
            if "initial_lr" in changed:
                group["lr"] *= new["initial_lr"] / old["initial_lr"]
            group.update(changed)
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
