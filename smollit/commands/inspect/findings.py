"""Likely errors of a split, its template or its settings: number, fraction, and what to do."""

from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smollit.commands.inspect.compare import (
    compared_rows,
    empty_questions,
    escaped_tokens,
    missing_values,
    placeholders,
    repeated_prompts,
    written_chats,
    written_ends,
)
from smollit.commands.inspect.left_alone import left_alone
from smollit.commands.inspect.split_view import SplitView
from smollit.data.encoding.report import fraction, verify_report

SLICE = 10_000  # examples per read


class Finding(NamedTuple):
    """A finding: `wrong` fails `--strict`, a `note` does not."""

    severity: Literal["wrong", "note"]
    text: str


def find_all(view: SplitView) -> list[Finding]:
    """All findings about a split, the worst first."""
    compared = compared_rows(view)
    alone_wrong, alone_notes = left_alone(compared, view.encoder)
    wrong = [
        line
        for check in (refusal, split_markers, ends_outside_loss, shared_rows, contradictions)
        for line in check(view)
    ]
    wrong += [
        line for check in (repeated_prompts, placeholders, written_chats, written_ends) for line in check(compared)
    ]
    wrong += escaped_tokens(compared, view.encoder)
    wrong += view.report.concerns()
    wrong += alone_wrong
    known = "\n".join(wrong)  # a refusal names the dropped rows already
    notes = [line for line in view.report.notes() if line not in known]
    notes += [*empty_questions(compared), *missing_values(compared), *alone_notes]
    return [Finding("wrong", line) for line in wrong] + [Finding("note", line) for line in notes]


def refusal(view: SplitView) -> list[str]:
    """Why training refuses these rows."""
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
        " learns them poorly, and text can spell them. Set `data.chat_template` to chatml, whose markers are single"
    ]


def ends_outside_loss(view: SplitView) -> list[str]:
    """Whether no response has the token that ends it in the loss."""
    if not view.report.kept:
        return []
    ends, responses = count_ends(view)
    if ends:
        return []
    return [
        f"no loss span, of {responses:,}, ends with a token that stops generation: the model would not learn to"
        " stop. Use a template that ends turns with a single token, such as chatml, or raise `data.max_length` if"
        " all responses are truncated"
    ]


def count_ends(view: SplitView) -> tuple[int, int]:
    """How many loss spans end with a stop token, and how many there are."""
    stops = np.array(view.encoder.template.stop_ids())
    ends, responses = 0, 0
    names = ["input_ids", "spans"] if view.has_chats else ["chosen_ids"]
    for table in view.examples.select_columns(names).with_format("arrow").iter(batch_size=SLICE):
        last = _last_tokens(table)
        ends += int(np.isin(last, stops).sum())
        responses += len(last)
    return ends, responses


def shared_rows(view: SplitView) -> list[str]:
    """Chats, or prompts of pairs, that this split has in common with another."""
    lines = []
    here = np.unique(view.column("digest"))
    what = "chats" if view.has_chats else "prompts"
    for other in view.others:
        there = np.unique(other.column("digest"))
        count, smaller = len(np.intersect1d(here, there)), max(min(len(here), len(there)), 1)
        if count:
            lines.append(
                f"{fraction(count, smaller, what)} of the smaller split are in both {view.name} and {other.name}:"
                " validation would measure memorization. Remove them from one of the two, or set `data.drop_val_rows`"
            )
    return lines


def contradictions(view: SplitView) -> list[str]:
    """Pairs of which another one prefers the other response to the same prompt."""
    if view.has_chats or not view.report.kept:
        return []
    prompt, chosen, rejected = (view.column(f"{name}_digest").tolist() for name in ("prompt", "chosen", "rejected"))
    pairs = set(zip(prompt, chosen, rejected, strict=True))
    count = sum((asked, bad, good) in pairs for asked, good, bad in zip(prompt, chosen, rejected, strict=True))
    if not count:
        return []
    return [
        f"{fraction(count, view.report.kept, 'pairs')} prefer what another pair of the same prompt rejects: one of the"
        " two is wrong. Check the step that made this data"
    ]


def _last_tokens(table: pa.Table) -> NDArray[Any]:
    """The last token of each loss span of a slice of examples."""
    if "chosen_ids" in table.column_names:
        ids = table["chosen_ids"].combine_chunks()
        return _values(ids)[ids.offsets.to_numpy()[1:] - ids.offsets[0].as_py() - 1]
    ids, spans = table["input_ids"].combine_chunks(), table["spans"].combine_chunks()
    starts = ids.offsets.to_numpy()[:-1] - ids.offsets[0].as_py()
    ends = _values(spans)[1::2]
    return _values(ids)[np.repeat(starts, spans.value_lengths().to_numpy() // 2) + ends - 1]


def _values(lists: pa.ListArray) -> NDArray[Any]:
    return lists.flatten().to_numpy()
