"""Votes: which of two responses is better, as preference rows that `fit` takes."""

import json
import os
from collections import Counter
from pathlib import Path

from smollit.commands.chat.speaker import Message


class Votes:
    """Appends each vote to a JSON Lines file.

    Args:
        path: The file.

    Raises:
        ValueError: If it can't be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise ValueError(f"`votes` {path} can't be written: {error}") from error
        self.path = path
        self.counts: Counter[str] = Counter()  # by the name of the model that won, and `=` for ties

    def add(self, prompt: list[Message], *, chosen: tuple[str, str], rejected: tuple[str, str]) -> None:
        """Write a row: both conversations, and which model each response is from.

        Args:
            prompt: The conversation before the responses.
            chosen: Name of the model and its response.
            rejected: The same of the other.
        """
        row = {
            "chosen": [*prompt, {"role": "assistant", "content": chosen[1]}],
            "rejected": [*prompt, {"role": "assistant", "content": rejected[1]}],
            "chosen_model": chosen[0],
            "rejected_model": rejected[0],
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.counts[chosen[0]] += 1

    def summary(self) -> list[str]:
        """What the votes say, and what to do with them."""
        wins = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()) if name != "=")
        rows = sum(count for name, count in self.counts.items() if name != "=")
        if not rows:
            return ["no votes"]
        return [
            f"{rows} votes ({wins}), {self.counts['=']} ties, in {self.path}",
            "Train on them: python -m smollit fit --config configs/dpo.yaml"
            f" --data.dataset {self.path} --data.train_split 'train[:90%]' --data.val_split 'train[90%:]'",
        ]
