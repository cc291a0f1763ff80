"""Where a run stands in its data, told to and by Lightning's loops."""

import math
from typing import Any

from lightning.pytorch import Trainer

from smollit.data.batching.sampler import BatchSampler


def at_step_end(trainer: Trainer) -> bool:
    """Whether the batch that was just done ended an optimizer step."""
    done = trainer.fit_loop.batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches or trainer.is_last_batch


def num_examples(trainer: Trainer) -> int:
    """Number of training examples; 0 where it is not known."""
    examples = getattr(trainer.datamodule, "examples", {})  # type: ignore[attr-defined]
    return len(examples["train"]) if "train" in examples else 0


def global_batch_size(trainer: Trainer) -> int:
    """Most rows per micro-batch over all ranks."""
    return int(getattr(trainer.datamodule, "train_batch_size", 1)) * trainer.world_size  # type: ignore[attr-defined]


def sampler_of(trainer: Trainer) -> BatchSampler | None:
    """What makes up the batches of a ChatDataModule; None if it streams, or if the loaders are the user's own."""
    return trainer.datamodule.sampler() if num_examples(trainer) else None  # type: ignore[attr-defined]


def rows_after(trainer: Trainer, num_batches: int) -> int:
    """Rows of the epoch that are done after so many micro-batches of this pass."""
    sampler = sampler_of(trainer)
    if sampler is not None:
        return sampler.rows_after(num_batches)
    position = getattr(trainer.datamodule, "position", None)  # type: ignore[attr-defined]
    return (position.rows if position else 0) + num_batches * global_batch_size(trainer)


def num_batches(trainer: Trainer, start: int) -> int:
    """Micro-batches of the epoch from row `start` on; of a stream, which has no end yet, those before it, negative."""
    sampler = sampler_of(trainer)
    return -(start // global_batch_size(trainer)) if sampler is None else len(sampler.sizes(start))


def order_group(trainer: Trainer) -> int:
    """Global batch size that the epoch's order was made for."""
    sampler = sampler_of(trainer)
    return global_batch_size(trainer) if sampler is None else sampler.group


def follow_length(trainer: Trainer) -> None:
    """Tell Lightning how many batches this epoch has: with a token budget, epochs differ a little."""
    sampler, loop = sampler_of(trainer), trainer.fit_loop
    if sampler is None or trainer.limit_train_batches != 1.0 or len(sampler) == loop.max_batches:
        return
    assert loop._combined_loader is not None, "the first epoch's loader is there before an epoch starts"
    # The first epoch's length is a limit for all that follow: rows behind it would be left out.
    loop._combined_loader.limits = [len(sampler)]
    loop.max_batches = len(sampler)
    if isinstance(trainer.val_check_interval, float):
        trainer.val_check_batch = max(1, int(len(sampler) * trainer.val_check_interval))


def begin_again(trainer: Trainer) -> None:
    """Start a loader anew that stands already: sharded strategies read the checkpoint after its workers have begun."""
    if trainer.fit_loop._data_fetcher is not None:
        follow_length(trainer)
        iter(trainer.fit_loop._data_fetcher)


def num_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run, if its epochs may differ in their numbers of batches; else None."""
    sampler = sampler_of(trainer)
    if sampler is None or not sampler.epochs_differ or trainer.limit_train_batches != 1.0:
        return None
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return None
    batches = [sampler.num_batches(epoch) for epoch in range(trainer.max_epochs)]
    steps = sum(math.ceil(number / trainer.accumulate_grad_batches) for number in batches)
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def set_progress(checkpoint: dict[str, Any], epoch: int, batches: int, total_batches: int) -> None:
    """Write into Lightning's loop state: `batches` of epoch `epoch` are done, and nothing is half done."""
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_loop.batch_progress"]
    for name in ("ready", "started", "processed", "completed"):
        progress["current"][name] = batches
        progress["total"][name] = total_batches
    progress["is_last_batch"] = False
    # Lightning's loggers count by this; it is saved one too low when a checkpoint is written inside a batch's hooks.
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
    validation = loops["epoch_loop.val_loop.batch_progress"]  # one that was broken off is not taken up in its middle
    for part in ("current", "total"):
        validation[part] |= dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    for part in ("current", "total"):
        begun = epoch + 1 if batches else epoch
        loops["epoch_progress"][part] |= {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    checkpoint["epoch"] = epoch
