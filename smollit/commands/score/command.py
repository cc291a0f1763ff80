"""The command `score`: its arguments, and the table that it prints."""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from smollit.commands.chat.speaker import find_device, find_model
from smollit.commands.command import FolderCommand
from smollit.commands.console import say
from smollit.commands.score.interval import Interval, Rows
from smollit.commands.score.likelihood import batches, losses, preferences
from smollit.commands.score.responses import GSM8K, IFEVAL, gsm8k, ifeval, read_rows, respond
from smollit.commands.score.tasks import TASK_ROWS, load_tasks, score_tasks
from smollit.data.template.template import load_template
from smollit.data.template.tokenize import load_tokenizer
from smollit.models import CausalLM
from smollit.paths import write_whole
from smollit.training.memory.device import keep_freed_memory

Scores = dict[str, Rows]
Table = dict[str, dict[str, Interval]]


@dataclass(kw_only=True)
class ScoreCommand(FolderCommand):
    """Score a model, or compare two: loss, preferences, instructions, sums.

    Intervals are 95 %, by bootstrap over rows. Of two models, the change is over the same rows.

    Args:
        chats: A data set of chats, or several, to measure loss and perplexity on; `data:split` names a split other
            than `train`.
        pairs: Preference pairs, or several such data sets: how often the implicit reward of the chosen response is the
            higher one.
        reference: The model that rewards are relative to; null takes the first of two models.
        ifeval: JSON Lines file of IFEval (google/IFEval): instructions that are followed. Needs `smollit[score]`.
        gsm8k: JSON Lines file of GSM8K: final answers that are right, without examples in the prompt.
        tasks: Tasks of lm_eval, or several, by name, pattern (`mmlu_*`) or YAML file. Needs `smollit[score]`.
        apply_chat_template: Whether the prompts of `tasks` are written with the model's chat template.
        max_rows: Number of rows of each data set.
        max_length: Longest sequence in tokens, of `chats` and `pairs`.
        max_new_tokens: Maximum number of tokens of a response.
        batch_size: Number of responses that are generated together; null takes as many as fit in half of the free
            memory, 128 at most. Of `tasks`, null takes 32 rows.
        html: File into which the table is written too, as a page.
        json: Print one JSON object instead of a table.
    """

    chats: str | list[str] | None = None
    pairs: str | list[str] | None = None
    reference: str | None = None
    ifeval: Path | None = None
    gsm8k: Path | None = None
    tasks: str | list[str] | None = None
    apply_chat_template: bool = False
    max_rows: int = 200
    max_length: int = 1024
    max_new_tokens: int = 512
    batch_size: int | None = None
    html: Path | None = None
    json: bool = False

    def run(self) -> None:
        """Score each model, and print the table."""
        if len(self.folders) > 2 or len(set(self.folders)) < len(self.folders):
            raise ValueError(f"`score` takes one model, or two that differ, got {', '.join(self.folders)}")
        for name in ("max_rows", "max_length", "max_new_tokens", "batch_size"):
            if vars(self)[name] is not None and vars(self)[name] < 1:
                raise ValueError(f"`{name}` must be at least 1, got {vars(self)[name]}")
        if not (self.chats or self.pairs or self.ifeval or self.gsm8k or self.tasks):
            raise ValueError(
                "`score` needs something to measure: give `--chats`, `--pairs`, `--ifeval`, `--gsm8k` or `--tasks`"
            )
        if self.apply_chat_template and not self.tasks:
            raise ValueError("`--apply_chat_template` is about `--tasks`: the other scores are of chats in any case")
        if self.pairs and self.reference is None and len(self.folders) == 1:
            raise ValueError("`--pairs` needs a reference: give two models, before and after, or `--reference`")
        tasks = load_tasks(as_list(self.tasks)) if self.tasks else []
        found = {name: dict(self.scores(name, tasks)) for name in self.folders}
        table = compare(found)
        if self.html:
            page = Console(record=True, file=io.StringIO(), width=120)
            show(page, table)
            write_whole(self.html, page.export_html())
        if self.json:
            print(json.dumps(table))
        else:
            show(Console(), table)

    def scores(self, name: str, tasks: list[Any]) -> Iterator[tuple[str, Rows]]:
        """The scores of a model, by their name."""
        source = find_model(name)
        if self.chats or self.pairs or self.ifeval or self.gsm8k:
            yield from self.chat_scores(name, source)
        if tasks:
            options = {"max_rows": self.max_rows, "batch_size": self.batch_size or TASK_ROWS}
            yield from score_tasks(tasks, source, apply_chat_template=self.apply_chat_template, **options)

    def chat_scores(self, name: str, source: str) -> Iterator[tuple[str, Rows]]:
        """The scores of chats, preferences and responses."""
        device = find_device()
        if device.type == "cpu":
            keep_freed_memory()  # as training does
        model = CausalLM(source).eval().to(device)
        sizes = {"max_rows": self.max_rows, "max_length": self.max_length}
        for data, label in labels(as_list(self.chats)).items():
            yield f"loss/{label}", losses(model, batches(data, source, pairs=False, **sizes))
        base = self.reference or self.folders[0]
        for data, label in labels(as_list(self.pairs)).items():
            reference = model if base == name else CausalLM(find_model(base)).eval().to(device)
            yield (
                f"preferences/{label}",
                preferences(model, reference, batches(data, source, pairs=True, **sizes)),
            )
        yield from self.generated(model, source)

    def generated(self, model: CausalLM, source: str) -> Iterator[tuple[str, Rows]]:
        """The scores of what a model responds."""
        template = load_template(load_tokenizer(source), "auto")
        for path, needed, verify in ((self.ifeval, IFEVAL, ifeval), (self.gsm8k, GSM8K, gsm8k)):
            if path is None:
                continue
            rows = read_rows(path, needed, self.max_rows)
            responses = respond(
                model,
                template,
                [row[needed[0]] for row in rows],
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
            )
            yield from verify(rows, responses).items()


def as_list(names: str | list[str] | None) -> list[str]:
    """One name, several or none."""
    return [names] if isinstance(names, str) else names or []


def labels(names: list[str]) -> dict[str, str]:
    """The last part of each data set's name, or the whole name of those whose last parts are equal."""
    last = [Path(name).name for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}


def compare(found: dict[str, Scores]) -> Table:
    """For each score, the interval of each model, and of the `change` from the first to the second."""
    names = list(found)
    table: Table = {}
    for score, rows in found[names[0]].items():
        table[score] = {name: found[name][score].interval() for name in names}
        if len(names) == 2:
            table[score]["change"] = found[names[1]][score].change(rows)
        if score.startswith("loss/"):  # exp is monotone, so it maps the interval
            perplexities = {name: Interval(*map(math.exp, table[score][name])) for name in names}
            table[score.replace("loss/", "perplexity/", 1)] = perplexities
    return table


def show(console: Console, table: Table) -> None:
    """Print each score, with a line per model."""
    width = max(len(name) for columns in table.values() for name in columns)
    for score, columns in table.items():
        say(console, score)
        for name, each in columns.items():
            say(console, f"{name:<{width}}  {each.value:10.4f}  [{each.low:.4f}, {each.high:.4f}]", indent=2)
