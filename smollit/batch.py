"""Batch: the one contract between data and models. Shapes: R rows, T positions in a row, M targets, N examples."""

from typing import NamedTuple

from torch import Tensor

IGNORE = -100  # target of a position that is not trained
PADDING = -1  # document of a padding position
SHARED, CHOSEN, REJECTED = 0, 1, 2  # branches


class Document(NamedTuple):
    """One example inside a row: how many positions of it are shared, chosen and rejected, in this order.

    A chat has only shared positions.
    """

    shared: int
    chosen: int = 0
    rejected: int = 0

    @property
    def length(self) -> int:
        """All positions."""
        return self.shared + self.chosen + self.rejected

    @property
    def is_pair(self) -> bool:
        """Whether it has branches."""
        return self.chosen + self.rejected > 0


class Batch(NamedTuple):
    """Token ids with, for each, what it must predict, and two integers that say who may see whom.

    Args:
        input_ids: [R, T] token ids.
        targets: [R, T] the token that each position must predict, or -100. Already shifted: nothing shifts again.
        position_ids: [R, T] place of the token in its own sequence.
        document: [R, T] which example of the batch the token belongs to, 0..N-1; -1 is padding.
        branch: [R, T] 0 shared, 1 chosen, 2 rejected. SFT has only 0.
        trained: [M] the positions that have a target, counted through all rows: r * T + t.
        example_ids: [N] row numbers in the data set.
        layout: The documents of each row, one after the other from its start: `document` and `branch` in numbers that
            need no look at the device.
        score_gap: [N] score of the chosen minus score of the rejected answer; None if a pair has none, and for chats.
        reference_logps: [N, 2] log p of chosen and rejected under the reference, if they were computed beforehand.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    document: Tensor
    branch: Tensor
    trained: Tensor
    example_ids: Tensor
    layout: tuple[tuple[Document, ...], ...]
    score_gap: Tensor | None = None
    reference_logps: Tensor | None = None

    @property
    def causal(self) -> bool:
        """Whether each row holds one document without branches, so that causal attention alone is right."""
        return all(len(row) <= 1 and not any(document.is_pair for document in row) for row in self.layout)

    @property
    def num_examples(self) -> int:
        """N, the number of chats or pairs; 0 in the empty batch that keeps ranks in step."""
        return self.example_ids.numel()

    @property
    def num_tokens(self) -> int:
        """Number of real (not padding) positions."""
        return sum(document.length for row in self.layout for document in row)

    @property
    def num_targets(self) -> int:
        """M, the number of trained positions."""
        return self.trained.numel()

    @property
    def answer_lengths(self) -> list[int]:
        """Trained positions of each answer, chosen then rejected, pair by pair: 2 N numbers that sum to M."""
        pairs = [document for row in self.layout for document in row]
        return [length for pair in pairs for length in (pair.chosen, pair.rejected)]
