"""Batch: the contract between data and models.

Shapes: R sequences, T positions of a sequence, M loss tokens, N examples, P pairs.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

IGNORE = -100  # label of a position without a loss
PADDING = -1  # document of a padding position
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
        example_ids: [N] row numbers in the data set.
        layout: The documents of each sequence, from its start on: `document` and `branch` as numbers on the host.
        pairs: [P, 2] indices of the chosen and the rejected response, counted through the batch; None for chats.
        score_gap: [P] score of the chosen minus score of the rejected response; None if a pair has none, and for chats.
        reference_logps: [number of responses] log p(response | prompt) under the reference; None if unknown.
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
    score_gap: Tensor | None = None
    reference_logps: Tensor | None = None

    @property
    def causal(self) -> bool:
        """Whether plain causal attention is right: each sequence holds one document, without responses."""
        return all(len(documents) <= 1 and not any(d.responses for d in documents) for documents in self.layout)

    @property
    def num_examples(self) -> int:
        """N, the number of chats or preference rows; 0 in the empty batch that keeps ranks in step."""
        return self.example_ids.numel()

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
