"""Steps, epochs, learning rate, optimizer, precision and validation, by their names in transformers."""

import math
from collections.abc import Mapping
from typing import Any

from smollit.commands.imports.mapping import Convert, Given, Nearest, Settings, every, flag, is_on, named, number, whole

SCHEDULES = {
    "linear": "Linear",
    "cosine": "Cosine",
    "cosine_with_min_lr": "Cosine",
    "constant": "Constant",
    "constant_with_warmup": "Constant",
    "inverse_sqrt": "InverseSqrt",
}
ADAMW = ("adamw", "adamw_hf", "adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "adamw_torch_xla")
OFF = (None, False, "no", "none")


def schedule(value: Any, given: Given) -> Settings:
    """A schedule by its name in transformers."""
    if value not in SCHEDULES:
        raise ValueError(f"there is no schedule {value}: `model.schedule` has WSD, and takes any scheduler of torch")
    return {"model.schedule": SCHEDULES[value]}


def schedule_options(value: Any, given: Given) -> Settings:
    """What a schedule takes: the floor of a cosine, as a fraction of the peak, or the time scale of a root."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected arguments by name, got {value}")
    name = named(given, "lr_scheduler_type", "lr_scheduler") or "linear"
    ours = schedule(name, given)["model.schedule"]
    left = {key: each for key, each in value.items() if each is not None and (key, each) != ("num_cycles", 0.5)}
    found: Settings = {}
    if ours == "Cosine" and "min_lr" in left:
        found["model.schedule.floor"] = number(left.pop("min_lr")) / number(given.get("learning_rate"))
    elif ours == "Cosine" and "min_lr_rate" in left:
        found["model.schedule.floor"] = number(left.pop("min_lr_rate"))
    elif ours == "InverseSqrt" and "timescale" in left:
        found["model.schedule.timescale"] = whole(left.pop("timescale"))
    if left:
        raise Nearest(found, f"`model.schedule: {ours}` has no {', '.join(left)}")
    return found


def warmup(value: Any, given: Given) -> Settings:
    """Warm-up in steps, or below 1 as a fraction of the run; transformers' `constant` has none."""
    length = number(value)
    if length > 0 and named(given, "lr_scheduler_type", "lr_scheduler") == "constant":
        raise ValueError("it has no effect there: the schedule `constant` has no warm-up")
    if length <= 0:
        return {}
    return {"model.warmup_ratio": length} if length < 1 else {"model.num_warmup_steps": int(length)}


def warmup_ratio(value: Any, given: Given) -> Settings:
    """Warm-up as a fraction of the run, unless it is given in steps too."""
    if number(value) > 0 and number(given.get("warmup_steps") or 0) > 0:
        raise ValueError("it has no effect there: `warmup_steps` comes first")
    return warmup(value, given)


def max_steps(value: Any, given: Given) -> Settings:
    """A number of steps, however many epochs they are."""
    return {"trainer.max_steps": whole(value), "trainer.max_epochs": -1} if whole(value) > 0 else {}


def epochs(value: Any, given: Given) -> Settings:
    """A number of epochs, or a part of the first, unless there is a number of steps."""
    if whole(given.get("max_steps") or 0) > 0:
        raise ValueError("it has no effect there: `max_steps` comes first")
    asked = number(value)
    if not 0 < asked < math.inf:
        raise ValueError("a run has more than 0 epochs")
    if asked < 1:
        return {"trainer.max_epochs": 1, "trainer.limit_train_batches": asked}
    found = {"trainer.max_epochs": math.ceil(asked)}
    if not asked.is_integer():
        why = "a part of an epoch after whole ones has no counterpart, and is rounded up"
        raise Nearest(found, f"trainer.max_epochs: {math.ceil(asked)}; {why}: `trainer.max_steps` ends it earlier")
    return found


def optimizer_name(value: Any, given: Given) -> Settings:
    """torch's AdamW is smollit's default."""
    if value in ADAMW:
        return {}
    raise ValueError("torch's AdamW is used; `model.optimizer` takes any class, such as bitsandbytes.optim.AdamW8bit")


def optimizer(name: str) -> Convert:
    """A setting of torch's AdamW."""
    return lambda value, given: {f"model.optimizer.{name}": number(value)}


def betas(value: Any, given: Given) -> Settings:
    """Both betas of AdamW."""
    return {"model.optimizer.betas": [number(given.get("adam_beta1") or 0.9), number(given.get("adam_beta2") or 0.999)]}


def precision(value: Any, given: Given) -> Settings:
    """bf16, mixed or with weights in it."""
    return {"trainer.precision": "bf16-true"} if value == "full" else flag("trainer.precision", "bf16-mixed")(value, {})


# ---- validation


def evaluates(given: Given) -> bool:
    """Whether there is validation during a run."""
    strategy = named(given, "eval_strategy", "evaluation_strategy")
    return strategy not in OFF if strategy is not None else is_on(given.get("do_eval")) or bool(given.get("eval_steps"))


def eval_strategy(value: Any, given: Given) -> Settings:
    """When there is validation: `steps` without a number are those of logging."""
    if value in OFF:
        return {"data.val_split": None}
    logging = given.get("logging_steps")
    if value == "steps" and not given.get("eval_steps") and logging and number(logging) >= 1:
        return {"trainer.val_every_n_steps": whole(logging)}
    return {}


def eval_steps(value: Any, given: Given) -> Settings:
    """An interval of validation, where there is one."""
    strategy = named(given, "eval_strategy", "evaluation_strategy")
    if strategy is not None and strategy != "steps":
        raise ValueError(f"it has no effect there: validation is by `{strategy}`")
    return every("trainer.val_every_n_steps")(value, given)


def keep_best(value: Any, given: Given) -> Settings:
    """The best checkpoint, by a metric that smollit has."""
    metric = str(given.get("metric_for_best_model") or "loss").removeprefix("eval_")
    if is_on(value) and not evaluates(given):
        raise ValueError("it needs validation, and there is none")
    if is_on(value) and metric != "loss" and not metric.startswith("rewards/"):
        raise ValueError(f"`trainer.keep_best` keeps the best by a metric of smollit, such as val/loss, not {metric}")
    return {"trainer.keep_best": f"val/{metric}"} if is_on(value) else {}
