"""Batch: the contract between data and models.

Shapes: R sequences, T positions of a sequence, M loss tokens, N examples, P pairs.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

IGNORE = -100  # label of a position without a loss
PADDING = -1  # document of a padding position
SHORT = 512  # tokens: kernels take shorter sequences as if they had so many
SHARED = 0  # branch of the positions before the responses, which are 1..K


class Document(NamedTuple):
    """Number of positions of one example in a sequence: the shared ones, then those of each response.

    A chat has only shared positions. A preference pair has two responses, chosen and rejected.
    """

    shared: int
    responses: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Number of all positions."""
        return self.shared + sum(self.responses)

    @property
    def context_length(self) -> int:
        """Number of positions that the last token of the longest response attends to."""
        return self.shared + max(self.responses, default=0)


class Joined(NamedTuple):
    """The documents of a batch joined without padding, as sequences of queries that attend to sequences of keys.

    A chat is one sequence, and so is a prompt with its first response. Every other response is one, whose keys are
    those of the prompt and its own. A sequence's last query attends to its last key.

    Args:
        positions: [J] positions that are not padding, counted through all sequences of the batch: r * T + t.
        loss_positions: [M] positions that have a label, counted through `positions`.
        query_boundaries: [S + 1] int32 first query of each sequence, and the number of all queries, J.
        key_boundaries: [S + 1] int32 first key of each sequence, and the number of all keys, K.
        key_positions: [K] each key's index in `positions`; None where the keys are the queries.
        longest_query: At least the queries of the longest sequence: one of a few numbers, which code is compiled for.
        longest_key: The same of keys.
    """

    positions: Tensor
    loss_positions: Tensor
    query_boundaries: Tensor
    key_boundaries: Tensor
    key_positions: Tensor | None
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, layout: Sequence[Sequence[Document]], *, width: int, loss_positions: Tensor) -> "Joined":
        """Join the documents of a batch of T = `width`, on the device of `loss_positions`, without waiting for it."""
        # The empty batch keeps one position of padding, so that every rank runs the same operations.
        layout = layout or [[Document(1)]]
        device = loss_positions.device
        lengths = [sum(document.length for document in documents) for documents in layout]
        positions = [torch.arange(row * width, row * width + length) for row, length in enumerate(lengths)]
        # Padding between the start of a row in the batch and its start here, all told: what a position moves by.
        moved = [row * width - start for row, start in enumerate(accumulate(lengths[:-1], initial=0))]
        joined = [document for documents in layout for document in documents]
        sequences = [_sequence_lengths(document) for document in joined]
        queries, keys = ([length for some in sequences for length in some[index]] for index in (0, 1))
        shares_keys = any(len(document.responses) > 1 for document in joined)
        row = loss_positions.div(width, rounding_mode="floor")
        return cls(
            _on(torch.cat(positions), device),
            loss_positions - _on(torch.tensor(moved), device)[row],
            _on(torch.tensor([0, *accumulate(queries)], dtype=torch.int32), device),
            _on(torch.tensor([0, *accumulate(keys)], dtype=torch.int32), device),
            _on(_key_positions(joined), device) if shares_keys else None,
            _bound(max(queries)),
            _bound(max(keys)),
        )


def _sequence_lengths(document: Document) -> tuple[list[int], list[int]]:
    """Queries and keys of each sequence of a document, without empty ones."""
    first = document.shared + sum(document.responses[:1])
    others = [length for length in document.responses[1:] if length]
    own = [first] if first else []
    return [*own, *others], [*own, *(document.shared + length for length in others)]


def _bound(length: int) -> int:
    """The power of two from SHORT on that is not below a length."""
    return max(SHORT, 1 << (length - 1).bit_length())


def _key_positions(documents: Sequence[Document]) -> Tensor:
    """Keys of each sequence, as indices of joined positions."""
    parts, start = [], 0
    for document in documents:
        end = start + document.shared + sum(document.responses[:1])
        parts.append(torch.arange(start, end))
        for length in document.responses[1:]:
            if length:
                parts += [torch.arange(start, start + document.shared), torch.arange(end, end + length)]
            end += length
        start = end
    return torch.cat(parts)


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


class Batch(NamedTuple):
    """Packed or padded sequences of documents, with labels, and two integers per position that define attention.

    A position attends to the positions of its own document that are not later and are shared or of its own branch.

    Args:
        input_ids: [R, T] token ids.
        labels: [R, T] the token that each position predicts, or -100. Already shifted: nothing shifts again.
        position_ids: [R, T] index of the token in prompt and response; both restart with each document.
        document: [R, T] index of the example that the token belongs to, 0..N-1; -1 is padding.
        branch: [R, T] 0 for shared tokens, 1..K for those of the document's K responses. Chats have only 0.
        loss_positions: [M] positions that have a label, counted through all sequences: r * T + t.
        example_ids: [N] row numbers in the data set; where several rows share a prompt, of the first.
        layout: The documents of each sequence, from its start on: `document` and `branch` as numbers on the host.
        pairs: [P, 2] indices of the chosen and the rejected response, counted through the batch; None for chats.
        pair_rows: [P] row number of each pair in the data set; None for chats.
        score_gap: [P] score of the chosen minus score of the rejected response; None if a pair has none, and for chats.
        reference_logps: [number of responses] log p(response | prompt) under the reference; None if unknown.
        joined: The documents without padding; None if it is made when a model needs it.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document: Tensor
    branch: Tensor
    loss_positions: Tensor
    example_ids: Tensor
    layout: tuple[tuple[Document, ...], ...]
    pairs: Tensor | None = None
    pair_rows: Tensor | None = None
    score_gap: Tensor | None = None
    reference_logps: Tensor | None = None
    joined: Joined | None = None

    @property
    def causal(self) -> bool:
        """Whether plain causal attention is right: each sequence holds one document, without responses."""
        return all(len(documents) <= 1 and not any(d.responses for d in documents) for documents in self.layout)

    @property
    def num_examples(self) -> int:
        """N, the number of chats or prompts with responses; 0 in the empty batch that keeps ranks in step."""
        return self.example_ids.numel()

    def example(self, index: int) -> "Batch":
        """A batch of one document alone, without padding."""
        documents = [document for sequence in self.layout for document in sequence]
        first = sum(len(document.responses) for document in documents[:index])
        responses = slice(first, first + len(documents[index].responses))
        inside = self.document == index
        labels = self.labels[inside][None]
        gap, logps, pairs, rows = self.score_gap, self.reference_logps, self.pairs, self.pair_rows
        if pairs is not None:
            own = (pairs >= responses.start).all(1) & (pairs < responses.stop).all(1)
            pairs, gap = pairs[own] - first, gap[own] if gap is not None else None
            rows = rows[own] if rows is not None else None
        return Batch(
            input_ids=self.input_ids[inside][None],
            labels=labels,
            position_ids=self.position_ids[inside][None],
            document=torch.zeros_like(labels),
            branch=self.branch[inside][None],
            loss_positions=(labels[0] != IGNORE).nonzero()[:, 0],
            example_ids=self.example_ids[index : index + 1],
            layout=((documents[index],),),
            pairs=pairs,
            pair_rows=rows,
            score_gap=gap,
            reference_logps=logps[responses] if logps is not None else None,
        )

    @property
    def num_tokens(self) -> int:
        """Number of positions that are not padding."""
        return sum(document.length for documents in self.layout for document in documents)

    @property
    def num_loss_tokens(self) -> int:
        """M, the number of positions that have a label."""
        return self.loss_positions.numel()

    @property
    def response_lengths(self) -> list[int]:
        """Loss tokens of each response, document by document. Where there are responses, the lengths sum to M."""
        return [length for documents in self.layout for document in documents for length in document.responses]


@runtime_checkable
class TokenSource(Protocol):
    """What modules ask of a data module besides batches. Smollit's data modules have it; another one may."""

    add_tokens: bool

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that a batch may hold. The model gets embeddings for new ones if `add_tokens` is set."""

    @property
    def val_names(self) -> tuple[str, ...]:
        """Names of the validation sets, one for each validation loader; empty if they have none."""

    def stop_ids(self) -> list[int]:
        """Tokens that end a response."""


@runtime_checkable
class CountedTokens(Protocol):
    """A data module that knows how many loss tokens a training batch has."""

    def loss_tokens_per_batch(self) -> float | None:
        """Mean number of loss tokens of a micro-batch of all devices; None if it is unknown."""


@runtime_checkable
class NamedModel(Protocol):
    """What a data module asks of a module: where its model, and so its tokenizer, comes from."""

    model_name: str
