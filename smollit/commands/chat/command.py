"""The command `chat`: its arguments."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from rich.console import Console

from smollit.commands.chat.session import Session
from smollit.commands.chat.speaker import Sampling, Speaker
from smollit.commands.chat.view import View
from smollit.commands.chat.votes import Votes
from smollit.commands.command import FolderCommand


@dataclass(kw_only=True)
class ChatCommand(FolderCommand):
    """Talk to a model, or to two of them side by side.

    Args:
        system: System prompt; null lets the chat template decide.
        temperature: Sampling temperature; 0 decodes greedily; null takes the model's own generation settings.
        max_new_tokens: Maximum number of tokens of a response.
        ab: Show the responses of two models blind, in random order, and write votes as preference rows.
        votes: File that votes are appended to.
        seed: Random seed of sampling and of the order; null takes another one each time.
    """

    system: str | None = None
    temperature: float | None = None
    max_new_tokens: int = 512
    ab: bool = False
    votes: Path = Path("votes.jsonl")
    seed: int | None = None

    def run(self) -> None:
        """Load the models, and talk until the end of the input."""
        if len(self.folders) > 2 or (self.ab and len(self.folders) != 2):
            wanted = "two models with --ab" if self.ab else "one model or two"
            raise ValueError(f"`chat` needs {wanted}, got {len(self.folders)}")
        if self.max_new_tokens < 1 or (self.temperature is not None and self.temperature < 0):
            raise ValueError("`max_new_tokens` must be at least 1, and `temperature` at least 0")
        if self.seed is not None:
            torch.manual_seed(self.seed)
        view = View(Console())
        session = Session(
            [Speaker.load(folder) for folder in self.folders],
            Sampling(self.temperature, self.max_new_tokens),
            view,
            system=self.system,
            votes=Votes(self.votes) if self.ab else None,
            order=Random(self.seed),
        )
        view.say(f"talking to {' and '.join(self.folders)}; /help lists the commands")
        session.run()
