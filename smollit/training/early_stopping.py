"""EarlyStopping over a resume: whether it ends the run again, and its patience, which Lightning takes from the file."""

import logging
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

log = logging.getLogger(__name__)


def early_stoppings(trainer: Trainer) -> dict[str, EarlyStopping]:
    """The EarlyStopping callbacks of a run, by their state key."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return {callback.state_key: callback for callback in callbacks if isinstance(callback, EarlyStopping)}


def stopped_early(trainer: Trainer) -> dict[str, str] | None:
    """The EarlyStopping that ended the run, by its state key, and its reason; None if it was something else."""
    for key, callback in early_stoppings(trainer).items():
        if callback.stopping_reason_message:
            return {"by": key, "why": callback.stopping_reason_message}
    return None


def still_ended(trainer: Trainer, checkpoint: dict[str, Any], ended: dict[str, str] | None) -> str | None:
    """Why the run stays ended: the callback that ended it is there again, and is not more patient now.

    To be called before the states of the callbacks are restored.
    """
    callback = early_stoppings(trainer).get(ended["by"]) if ended else None
    if ended is None or callback is None:
        return None
    state = checkpoint.get("callbacks", {}).get(ended["by"], {})
    ran_out = state.get("stopping_reason") == EarlyStoppingReason.PATIENCE_EXHAUSTED.value
    if ran_out and callback.patience > state["wait_count"]:
        return None
    return f"EarlyStopping ended the run: {ended['why']}"


class Patience:
    """The patience of each EarlyStopping as this start sets it.

    Args:
        trainer: The trainer, before the states of its callbacks are restored.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.by_key = {key: callback.patience for key, callback in early_stoppings(trainer).items()}

    def restore(self, trainer: Trainer) -> None:
        """Set it again, log a change, and forget why the run was ended: it is not, now."""
        for key, callback in early_stoppings(trainer).items():
            now = self.by_key.get(key, callback.patience)
            if now != callback.patience:
                log.warning("the patience of EarlyStopping was %s, and is now %s", callback.patience, now)
            callback.patience = now
            callback.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            callback.stopping_reason_message = None
