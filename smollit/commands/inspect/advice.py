"""What is likely to be wrong with a split, its template or its settings: number, share, and what to do."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from smollit.commands.inspect.view import SplitView
from smollit.data.encoding.report import fraction, verify_report
from smollit.data.formats.types import Conversation, Preference

NUM_LOOKED_AT = 500  # rows, evenly spread, whose texts are compared
SHORTEST_QUESTION = 20  # characters; shorter questions may well stand in an answer
MANY_REPEATS = 0.05  # share of the rows that were looked at
SLICE = 10_000  # examples that are looked at once


class Finding(NamedTuple):
    """Something to look at; `wrong` fails `--strict`, a `note` does not."""

    severity: Literal["wrong", "note"]
    text: str


def find_all(view: SplitView) -> list[Finding]:
    """All that is to be said about a split, the worst first."""
    checks = [refusal, split_markers, untrained_end, shared_rows, repeated_prompts]
    wrong = [*(line for check in checks for line in check(view)), *view.report.concerns()]
    told = "\n".join(wrong)  # a refusal names the dropped rows already
    notes = [line for line in view.report.notes() if line not in told]
    return [Finding("wrong", line) for line in wrong] + [Finding("note", line) for line in notes]


def refusal(view: SplitView) -> list[str]:
    """Why a run would not begin with these rows."""
    try:
        verify_report(view.report, view.name, view.max_dropped_share)
    except ValueError as error:
        return [f"training refuses this split: {error}"]
    return []


def split_markers(view: SplitView) -> list[str]:
    """Markers of the template that are several tokens each."""
    split = view.encoder.template.split_markers()
    if not split:
        return []
    return [
        f"the chat template's markers {', '.join(split)} are several tokens each for this tokenizer: a small model"
        " learns them badly, and text can spell them. Set `data.chat_template` to chatml, whose markers are single"
    ]


def untrained_end(view: SplitView) -> list[str]:
    """Whether no answer trains the token that ends it."""
    if not view.report.kept:
        return []
    ends, answers = count_ends(view)
    if ends:
        return []
    return [
        f"no trained answer, of {answers:,}, ends with a token that stops generation: the model would not learn to"
        " stop. Take a template that ends answers with a single token, such as chatml, or raise `data.max_length` if"
        " all answers are cut"
    ]


def count_ends(view: SplitView) -> tuple[int, int]:
    """How many trained stretches end with a stop token, and how many there are."""
    stops = np.array(view.encoder.template.stop_ids())
    ends, answers = 0, 0
    names = ["input_ids", "spans"] if "spans" in view.examples.column_names else ["chosen_ids"]
    for table in view.examples.select_columns(names).with_format("arrow").iter(batch_size=SLICE):
        last = _last_tokens(table)
        ends += int(np.isin(last, stops).sum())
        answers += len(last)
    return ends, answers


def shared_rows(view: SplitView) -> list[str]:
    """Chats, or prompts of pairs, that this split has in common with another."""
    lines = []
    here = np.unique(view.column("digest"))
    what = "chats" if "spans" in view.examples.column_names else "prompts"
    for other in view.others:
        there = np.unique(other.column("digest"))
        count, smaller = len(np.intersect1d(here, there)), max(min(len(here), len(there)), 1)
        if count:
            lines.append(
                f"{fraction(count, smaller, what)} of the smaller split stand in both {view.name} and {other.name}:"
                " validation would praise what was learned by heart. Take them out of one of the two"
            )
    return lines


def repeated_prompts(view: SplitView) -> list[str]:
    """Whether answers begin with the question that they answer."""
    numbers = view.column("row")
    chosen = numbers[np.unique(np.linspace(0, len(numbers) - 1, NUM_LOOKED_AT).astype(int))] if len(numbers) else []
    repeats = [repeats_prompt(view.encoder.parse(view.row(int(number)))) for number in chosen]
    if sum(repeats) <= MANY_REPEATS * len(repeats):
        return []
    return [
        f"in {fraction(sum(repeats), len(repeats), 'rows that were looked at')} an answer repeats"
        " the question before it says anything: the model would learn to echo. Look at the step that"
        " made this data: answers must not hold the prompt"
    ]


def repeats_prompt(record: Any) -> bool:
    """Whether a trained answer, for pairs the chosen one, starts with the question before it."""
    if isinstance(record, Conversation):
        messages = record.messages
    elif isinstance(record, Preference):
        messages = [*record.prompt, record.chosen]
    else:
        return False
    return any(
        len(question) >= SHORTEST_QUESTION and answer.startswith(question) for question, answer in _exchanges(messages)
    )


def _exchanges(messages: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for before, after in pairwise(messages):
        if (before["role"], after["role"]) == ("user", "assistant"):
            yield before["content"].strip(), after["content"].strip()


def _last_tokens(table: Any) -> Any:
    """The last token of each trained stretch of a slice of examples."""
    if "chosen_ids" in table.column_names:
        ids = table["chosen_ids"].combine_chunks()
        return _values(ids)[ids.offsets.to_numpy()[1:] - ids.offsets[0].as_py() - 1]
    ids, spans = table["input_ids"].combine_chunks(), table["spans"].combine_chunks()
    starts = ids.offsets.to_numpy()[:-1] - ids.offsets[0].as_py()
    ends = _values(spans)[1::2]
    return _values(ids)[np.repeat(starts, spans.value_lengths().to_numpy() // 2) + ends - 1]


def _values(lists: Any) -> Any:
    return lists.flatten().to_numpy()
