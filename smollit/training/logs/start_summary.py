"""StartSummary: what a run trains, on what, and for how long, printed before its first step."""

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.data.encoding.report import Report, fraction
from smollit.losses import Sum
from smollit.models.adapters import quantized_layers
from smollit.models.generation import positions_of
from smollit.models.sharding import unwrap
from smollit.modules import DPOModule
from smollit.precision import has_fast_bf16, slow_precision
from smollit.training.steps import described_data

log = logging.getLogger(__name__)
CHECKPOINTING = {False: "off", True: "on", "selective": "selective"}


class StartSummary(Callback):
    """Prints parameters, dtype, mode, attention, precision, data, steps, learning rate and the run folder."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_lengths(trainer, pl_module)
        check_scores(trainer, pl_module)
        if trainer.is_global_zero:
            show(describe(trainer, pl_module))
            warn_of_slow_precision(trainer, pl_module)


def show(named: dict[str, str]) -> None:
    """Print one line per entry."""
    width = max(map(len, named))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in named.items()), flush=True)


def describe(trainer: Trainer, module: Any) -> dict[str, str]:
    """The entries of the summary, by name."""
    policy, parameters = unwrap(module.policy), list(module.policy.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    packed = quantized_layers(policy)  # two weights in a byte
    total = sum(parameter.numel() for parameter in parameters)
    total += sum(layer.in_features * layer.out_features - layer.weight.numel() for _, layer in packed)
    data = described_data(trainer)
    rows = describe_rows(data.reports if data else {})
    batch = data.train_batch_size if data else 1
    attention = f"{policy.attention}, verified for {policy.config.model_type}"
    accumulation, world = trainer.accumulate_grad_batches, trainer.world_size
    steps = trainer.estimated_stepping_batches
    return {
        "parameters": f"{trainable:,} trainable of {total:,}",
        "weights": str(parameters[0].dtype).removeprefix("torch.")
        + (f", and {module.quantize} in {len(packed)} linear layers" if packed else ""),
        "mode": "train" if module.policy.training else "eval",
        "attention": f"{attention}, gradient checkpointing {CHECKPOINTING[module.gradient_checkpointing]}",
        "precision": str(trainer.precision),
        "data": rows,
        "batch": f"{batch} x {accumulation} accumulated x {world} devices = {batch * accumulation * world} per step",
        "steps": f"{'unknown' if math.isinf(steps) else f'{int(steps):,}'}, from step {trainer.global_step:,}",
        "learning rate": f"peak {module.learning_rate:g}, {module.rates.describe()}",
        **({"beta2": module.half_life.describe()} if module.half_life else {}),
        "run folder": str(trainer.default_root_dir),
    }


def describe_rows(reports: dict[str, Report]) -> str:
    """Rows, tokens and fraction of loss tokens of all parts of the training split."""
    train = [report for name, report in reports.items() if name.split(":")[0] == "train"]
    if not train:
        return "unknown"
    kept, tokens = sum(report.kept for report in train), sum(report.tokens for report in train)
    loss_tokens = sum(report.loss_tokens for report in train)
    return f"{kept:,} rows, {tokens:,} tokens, {loss_tokens / max(tokens, 1):.1%} loss tokens"


def warn_of_slow_precision(trainer: Trainer, module: LightningModule) -> None:
    """Say if another precision is faster on the run's device; nothing is changed."""
    device, parameters = module.device, sum(weight.numel() for weight in module.parameters())
    fast = has_fast_bf16(device)
    slow = slow_precision(str(trainer.precision), device.type, fast_bf16=fast, parameters=parameters)
    if slow:
        log.warning("%s", slow)


def check_lengths(trainer: Trainer, module: Any) -> None:
    """Refuse rows that are longer than the model has positions.

    Raises:
        ValueError: If `data.max_length` is above the model's positions.
    """
    positions = positions_of(unwrap(module.policy).config)
    data = described_data(trainer)
    longest = data.max_length if data else 0
    if longest > positions:
        raise ValueError(f"`data.max_length` is {longest:,}, but the model has {positions:,} positions: lower it")


def check_scores(trainer: Trainer, module: LightningModule) -> None:
    """Refuse pairs without scores where the loss reads them, before the step that would meet the first one.

    Raises:
        ValueError: If a split of training or validation has such pairs.
    """
    data = described_data(trainer)
    if data is None or not isinstance(module, DPOModule):
        return
    losses = module.loss.losses if isinstance(module.loss, Sum) else []
    used = next((loss.scores for loss in (module.loss, *losses) if loss.scores != "ignore"), None)
    for split, report in data.reports.items():
        if used is not None and report.scored < report.kept:
            raise ValueError(
                f"`model.loss.scores` is {used}, and {fraction(report.kept - report.scored, report.kept, 'pairs')} of"
                f" {split} have no scores: set it to `ignore`, or `data.where` to leave them out"
            )
