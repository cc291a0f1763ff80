"""Examples -> Batch. Padding is on the right and is known from lengths, never from ids."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from smollit.batch import IGNORE, PADDING, SHARED, Batch, Document, Joined
from smollit.data.batching.dataset import Example
from smollit.data.batching.documents import Compared, pairs_of


class Positions(NamedTuple):
    """One example as positions of a sequence: four lists of equal length, and the size of each branch."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    branch: list[int]
    document: Document


def unpacked(examples: Sequence[Example]) -> list[list[Example]]:
    """One sequence for each example: no packing."""
    return [[example] for example in examples]


def collate_chats(sequences: Sequence[Sequence[Example]], pad_to_multiple_of: int = 1) -> Batch:
    """Collate sequences of one or several chats; the label of a position is the next token if that is a loss token."""
    return collate(sequences, lambda chat: chat_positions(chat["input_ids"], chat["spans"]), pad_to_multiple_of)


def collate_pairs(sequences: Sequence[Sequence[Example]], pad_to_multiple_of: int = 1) -> Batch:
    """Collate sequences of one or several documents: each prompt once, and each response that its pairs compare."""
    documents = [document for sequence in sequences for document in sequence]
    compared = [Compared.of(document) for document in documents]
    responses = (one.responses for one in compared)
    batch = collate(sequences, lambda one: response_positions(one["prompt_ids"], next(responses)), pad_to_multiple_of)
    firsts = accumulate((len(one.responses) for one in compared), initial=0)  # the first response of each document
    indices = [
        [first + response for response in pair]
        for first, one in zip(firsts, compared, strict=False)
        for pair in one.pairs
    ]
    pairs = [pair for document in documents for pair in pairs_of(document)]
    return batch._replace(
        pairs=torch.tensor(indices, dtype=torch.long).view(-1, 2),
        pair_rows=torch.tensor([pair["row"] for pair in pairs], dtype=torch.long),
        score_gap=_score_gap(pairs),
        reference_logps=_reference_logps(documents, compared),
    )


def collate_prompts(sequences: Sequence[Sequence[Example]], pad_to_multiple_of: int = 1) -> Batch:
    """Collate the prompts, up to where the (last) response starts, without labels: for generation."""
    return collate(sequences, prompt_positions, pad_to_multiple_of)


def prompt_positions(example: Example) -> Positions:
    """The tokens before the responses of a pair, or before the last assistant turn of a chat."""
    if "prompt_ids" in example:
        ids = example["prompt_ids"]
    else:  # where only parts of turns count in the loss, the response starts before it
        ids = example["input_ids"][: example.get("response_start", example["spans"][-2])]
    return Positions(list(ids), [IGNORE] * len(ids), list(range(len(ids))), [SHARED] * len(ids), Document(len(ids)))


def chat_positions(ids: list[int], spans: list[int]) -> Positions:
    """A chat of n tokens -> n - 1 positions; `spans` [start0, end0, start1, end1, ...] are the loss spans."""
    labels = [IGNORE] * (len(ids) - 1)
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        labels[start - 1 : end - 1] = ids[start:end]
    length = len(labels)
    return Positions(list(ids[:-1]), labels, list(range(length)), [SHARED] * length, Document(length))


def response_positions(prompt: list[int], responses: Sequence[list[int]]) -> Positions:
    """The prompt without its last token, then, for each response, that token and the response without its last token.

    Every branch repeats the last prompt token, because it predicts a different next token in each. Position ids
    continue from the prompt in every branch.
    """
    *shared, last = prompt
    first = len(shared)
    input_ids, labels = shared, [IGNORE] * first
    position_ids, branches = list(range(first)), [SHARED] * first
    for branch, response in enumerate(responses, start=1):
        input_ids += [last, *response[:-1]]
        labels += response
        position_ids += range(first, first + len(response))
        branches += [branch] * len(response)
    return Positions(input_ids, labels, position_ids, branches, Document(first, tuple(map(len, responses))))


def collate(
    sequences: Sequence[Sequence[Example]], to_positions: Callable[[Example], Positions], pad_to_multiple_of: int = 1
) -> Batch:
    """Pad every field to one width. No sequences give the empty batch: one sequence of padding without labels."""
    packed = [[to_positions(example) for example in sequence] for sequence in sequences]
    longest = max((sum(len(part.input_ids) for part in parts) for parts in packed), default=1)
    width = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    labels = _pad([[label for part in parts for label in part.labels] for parts in packed], width, IGNORE)
    layout = tuple(tuple(part.document for part in parts) for parts in packed)
    loss_positions = (labels.view(-1) != IGNORE).nonzero()[:, 0]
    return Batch(
        input_ids=_pad([[token for part in parts for token in part.input_ids] for parts in packed], width, 0),
        labels=labels,
        position_ids=_pad([[index for part in parts for index in part.position_ids] for parts in packed], width, 0),
        document=_pad(_documents(packed), width, PADDING),
        branch=_pad([[branch for part in parts for branch in part.branch] for parts in packed], width, SHARED),
        loss_positions=loss_positions,
        example_ids=torch.tensor([example["row"] for sequence in sequences for example in sequence], dtype=torch.long),
        layout=layout,
        joined=Joined.of(layout, width=width, loss_positions=loss_positions),
    )


def _documents(packed: Sequence[Sequence[Positions]]) -> list[list[int]]:
    """The index, counted through the batch, of the example that each position belongs to."""
    indices = iter(range(sum(map(len, packed))))
    return [[index for part in parts for index in [next(indices)] * len(part.input_ids)] for parts in packed]


def _pad(lists: Sequence[list[int]], width: int, value: int) -> Tensor:
    padded = [values + [value] * (width - len(values)) for values in lists] or [[value] * width]
    return torch.tensor(padded, dtype=torch.long)


def _score_gap(pairs: Sequence[Example]) -> Tensor | None:
    """[P], if every pair has scores; decided on the host, which needs no device synchronization."""
    gaps = [pair.get("score_gap", math.nan) for pair in pairs]
    return None if any(map(math.isnan, gaps)) else torch.tensor(gaps, dtype=torch.float32)


def _reference_logps(documents: Sequence[Example], compared: Sequence[Compared]) -> Tensor | None:
    """[number of responses] in their order, if every pair has precomputed reference scores."""
    values: list[float] = []
    for document, one in zip(documents, compared, strict=True):
        known = dict[int, float]()
        for pair, numbers in zip(pairs_of(document), one.pairs, strict=True):
            if "reference_chosen" not in pair:
                return None
            known |= zip(numbers, (pair["reference_chosen"], pair["reference_rejected"]), strict=True)
        values += [known[number] for number in range(len(one.responses))]
    return torch.tensor(values, dtype=torch.float32)
