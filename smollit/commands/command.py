"""The interface of a command: arguments, and an action on a configured run, or on folders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:  # commands on folders start without Lightning
    from smollit.data import ChatDataModule
    from smollit.modules import FineTuningModule
    from smollit.training import SmollitTrainer


class ConfiguredRun(Protocol):
    """The objects that a config describes. Weights and rows are not loaded yet; the trainer is created on first use."""

    @property
    def model(self) -> "FineTuningModule":
        """The module, without weights."""

    @property
    def datamodule(self) -> "ChatDataModule":
        """The data module."""

    @property
    def trainer(self) -> "SmollitTrainer":
        """The trainer."""

    @property
    def folder(self) -> Path:
        """The run folder."""

    def fit_settings(self, changes: Sequence[str] = ()) -> str:
        """The settings of the run as YAML, for `fit`, perhaps with changes as words of a command line."""

    def find_checkpoint(self, ckpt_path: str) -> Path:
        """The file that `ckpt_path` means: a path, `last` or `best`."""


@dataclass(kw_only=True)
class Command(ABC):
    """A command of `python -m smollit`: a dataclass whose documented fields are its arguments and its `--help`."""

    @classmethod
    def words(cls, words: Sequence[str]) -> list[str]:
        """The words after the command as settings; a command may have a shorter way to write them."""
        return list(words)

    @classmethod  # noqa: B027, most commands need a config and keep this
    def run_alone(cls, words: Sequence[str]) -> None:
        """Run and exit, if these arguments need no config; by default, every command needs one.

        Raises:
            SystemExit: After it has run.
        """

    @abstractmethod
    def run(self, run: ConfiguredRun) -> None:
        """Run the command."""


@dataclass(kw_only=True)
class FolderCommand(ABC):
    """A command on folders that needs no config: its first words are the folders.

    Args:
        folders: Folders, or names on the Hub.
    """

    # How many words come first, what the usage calls one, and its help.
    operands: ClassVar[tuple[str, str, str]] = ("+", "FOLDER", "A run folder, an export, or a name on the Hub.")
    folders: list[str]

    @abstractmethod
    def run(self) -> None:
        """Run the command; exit with code 1 if what it looks for is not so."""
