"""A callback that notes the clock's time (seconds since 1970) where a run gets to, for first_step.py."""

import time
from typing import Any

from lightning.pytorch import Callback

ENDS: dict[str, float] = {}  # part -> when it was done


class Stamp(Callback):
    """Arguments, data, model, first step: when each was done."""

    def __init__(self) -> None:
        ENDS["arguments"] = time.time()  # all are read, and the objects are being made

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The data module's own setup came before."""
        ENDS["data"] = time.time()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Model and optimizer are there."""
        ENDS["model"] = time.time()

    def on_train_batch_end(self, *args: Any) -> None:
        """After the optimizer step."""
        ENDS["step"] = time.time()
