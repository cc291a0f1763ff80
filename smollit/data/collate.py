"""Examples -> Batch. Padding stands on the right and is known from lengths, never from ids."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smollit.batch import CHOSEN, IGNORE, PADDING, REJECTED, SHARED, Batch

Example = dict[str, Any]


class Row(NamedTuple):
    """One row before padding: four lists of equal length."""

    input_ids: list[int]
    targets: list[int]
    position_ids: list[int]
    branch: list[int]


def collate_chats(examples: Sequence[Example], pad_to_multiple_of: int = 1) -> Batch:
    """One chat per row; each position's target is the next token if that is trained."""
    rows = [chat_row(example["input_ids"], example["spans"]) for example in examples]
    return to_batch(rows, [example["row"] for example in examples], pad_to_multiple_of, causal=True)


def collate_pairs(examples: Sequence[Example], pad_to_multiple_of: int = 1) -> Batch:
    """One pair per row, with the prompt once."""
    rows = [pair_row(example["prompt_ids"], example["chosen_ids"], example["rejected_ids"]) for example in examples]
    return to_batch(rows, [example["row"] for example in examples], pad_to_multiple_of, causal=False)


def collate_prompts(examples: Sequence[Example], pad_to_multiple_of: int = 1) -> Batch:
    """One prompt per row, up to where the (last) answer starts, without targets: for generation."""
    prompts = [
        example["prompt_ids"] if "prompt_ids" in example else example["input_ids"][: example["spans"][-2]]
        for example in examples
    ]
    rows = [Row(list(ids), [IGNORE] * len(ids), list(range(len(ids))), [SHARED] * len(ids)) for ids in prompts]
    return to_batch(rows, [example["row"] for example in examples], pad_to_multiple_of, causal=True)


def chat_row(ids: list[int], spans: list[int]) -> Row:
    """A chat of n tokens -> n - 1 positions; `spans` [start0, end0, start1, end1, ...] are the trained tokens."""
    targets = [IGNORE] * (len(ids) - 1)
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        targets[start - 1 : end - 1] = ids[start:end]
    length = len(targets)
    return Row(list(ids[:-1]), targets, list(range(length)), [SHARED] * length)


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
    return Row(input_ids, targets, positions, branch)


def to_batch(rows: Sequence[Row], example_ids: Sequence[int], pad_to_multiple_of: int, causal: bool) -> Batch:
    """Pad every field by the one rule. No rows give the empty batch: one row of padding, which trains nothing."""
    longest = max((len(row.input_ids) for row in rows), default=1)
    width = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    documents = [[index] * len(row.input_ids) for index, row in enumerate(rows)]
    return Batch(
        input_ids=_pad([row.input_ids for row in rows], width, 0),
        targets=_pad([row.targets for row in rows], width, IGNORE),
        position_ids=_pad([row.position_ids for row in rows], width, 0),
        document=_pad(documents, width, PADDING),
        branch=_pad([row.branch for row in rows], width, SHARED),
        example_ids=torch.tensor(example_ids, dtype=torch.long),
        causal=causal,
    )


def _pad(lists: Sequence[list[int]], width: int, value: int) -> Tensor:
    padded = [values + [value] * (width - len(values)) for values in lists] or [[value] * width]
    return torch.tensor(padded, dtype=torch.long)
