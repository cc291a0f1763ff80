"""Examples -> Batch. Padding stands on the right and is known from lengths, never from ids."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smollit.batch import CHOSEN, IGNORE, PADDING, REJECTED, SHARED, Batch, Document

Example = dict[str, Any]


class Row(NamedTuple):
    """One example before padding: four lists of equal length, and how many positions each branch has."""

    input_ids: list[int]
    targets: list[int]
    position_ids: list[int]
    branch: list[int]
    layout: Document


def one_per_row(examples: Sequence[Example]) -> list[list[Example]]:
    """A row for each example: no packing."""
    return [[example] for example in examples]


def collate_chats(rows: Sequence[Sequence[Example]], pad_to_multiple_of: int = 1) -> Batch:
    """Rows of one or several chats; each position's target is the next token if that is trained."""
    return to_batch(rows, lambda chat: chat_row(chat["input_ids"], chat["spans"]), pad_to_multiple_of)


def collate_pairs(rows: Sequence[Sequence[Example]], pad_to_multiple_of: int = 1) -> Batch:
    """Rows of one or several pairs, each with its prompt once."""
    batch = to_batch(
        rows,
        lambda pair: pair_row(pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]),
        pad_to_multiple_of,
    )
    pairs = [pair for row in rows for pair in row]
    return batch._replace(score_gap=_score_gaps(pairs), reference_logps=_reference_logps(pairs))


def collate_prompts(rows: Sequence[Sequence[Example]], pad_to_multiple_of: int = 1) -> Batch:
    """One prompt per row, up to where the (last) answer starts, without targets: for generation."""
    return to_batch(rows, prompt_row, pad_to_multiple_of)


def prompt_row(example: Example) -> Row:
    """The tokens that stand before a pair's answers, or before a chat's last answer."""
    ids = example["prompt_ids"] if "prompt_ids" in example else example["input_ids"][: example["spans"][-2]]
    return Row(list(ids), [IGNORE] * len(ids), list(range(len(ids))), [SHARED] * len(ids), Document(len(ids)))


def chat_row(ids: list[int], spans: list[int]) -> Row:
    """A chat of n tokens -> n - 1 positions; `spans` [start0, end0, start1, end1, ...] are the trained tokens."""
    targets = [IGNORE] * (len(ids) - 1)
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        targets[start - 1 : end - 1] = ids[start:end]
    length = len(targets)
    return Row(list(ids[:-1]), targets, list(range(length)), [SHARED] * length, Document(length))


def pair_row(prompt: list[int], chosen: list[int], rejected: list[int]) -> Row:
    """The prompt without its last token, then that token and each answer without its last token.

    Both branches repeat the last prompt token: it predicts two different next tokens. Positions go on from the prompt
    in both.
    """
    *shared, last = prompt
    first = len(shared)
    input_ids, targets = shared, [IGNORE] * first
    positions, branch = list(range(first)), [SHARED] * first
    for answer, number in ((chosen, CHOSEN), (rejected, REJECTED)):
        input_ids += [last, *answer[:-1]]
        targets += answer
        positions += range(first, first + len(answer))
        branch += [number] * len(answer)
    return Row(input_ids, targets, positions, branch, Document(first, len(chosen), len(rejected)))


def to_batch(rows: Sequence[Sequence[Example]], to_row: Callable[[Example], Row], pad_to_multiple_of: int = 1) -> Batch:
    """Pad every field by the one rule. No rows give the empty batch: one row of padding, which trains nothing."""
    examples = [[to_row(example) for example in row] for row in rows]
    longest = max((sum(len(part.input_ids) for part in row) for row in examples), default=1)
    width = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    targets = _pad([[target for part in row for target in part.targets] for row in examples], width, IGNORE)
    return Batch(
        input_ids=_pad([[token for part in row for token in part.input_ids] for row in examples], width, 0),
        targets=targets,
        position_ids=_pad([[place for part in row for place in part.position_ids] for row in examples], width, 0),
        document=_pad(_documents(examples), width, PADDING),
        branch=_pad([[branch for part in row for branch in part.branch] for row in examples], width, SHARED),
        trained=(targets.view(-1) != IGNORE).nonzero()[:, 0],
        example_ids=torch.tensor([example["row"] for row in rows for example in row], dtype=torch.long),
        layout=tuple(tuple(part.layout for part in row) for row in examples),
    )


def _documents(rows: Sequence[Sequence[Row]]) -> list[list[int]]:
    """The number, through the whole batch, of the example that each position belongs to."""
    numbers = iter(range(sum(map(len, rows))))
    return [[number for part in row for number in [next(numbers)] * len(part.input_ids)] for row in rows]


def _pad(lists: Sequence[list[int]], width: int, value: int) -> Tensor:
    padded = [values + [value] * (width - len(values)) for values in lists] or [[value] * width]
    return torch.tensor(padded, dtype=torch.long)


def _score_gaps(pairs: Sequence[Example]) -> Tensor | None:
    """[N], if every pair has scores: looked at here, where no device is waited for."""
    gaps = [pair.get("score_gap", math.nan) for pair in pairs]
    return None if any(map(math.isnan, gaps)) else torch.tensor(gaps, dtype=torch.float32)


def _reference_logps(pairs: Sequence[Example]) -> Tensor | None:
    """[N, 2], if the reference was scored beforehand."""
    if not all("reference_chosen" in pair for pair in pairs):
        return None
    values = [[pair["reference_chosen"], pair["reference_rejected"]] for pair in pairs]
    return torch.tensor(values, dtype=torch.float32).view(-1, 2)
