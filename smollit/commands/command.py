"""The interface of a command: arguments, and an action on a configured run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from smollit.data import ChatDataModule
from smollit.modules import FineTuningModule
from smollit.training import SmollitTrainer


class ConfiguredRun(Protocol):
    """The objects that a config describes. Weights and rows are not loaded yet; the trainer is created on first use."""

    @property
    def model(self) -> FineTuningModule:
        """The module, without weights."""

    @property
    def datamodule(self) -> ChatDataModule:
        """The data module."""

    @property
    def trainer(self) -> SmollitTrainer:
        """The trainer."""

    @property
    def folder(self) -> Path:
        """The run folder."""

    def find_checkpoint(self, ckpt_path: str) -> Path:
        """The file that `ckpt_path` means: a path, `last` or `best`."""


@dataclass(kw_only=True)
class Command(ABC):
    """A command of `python -m smollit`: a dataclass whose documented fields are its arguments and its `--help`."""

    @abstractmethod
    def run(self, run: ConfiguredRun) -> None:
        """Run the command."""
