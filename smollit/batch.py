"""Batch: the one contract between data and models. Shapes: R rows, T positions in a row, N examples."""

from typing import NamedTuple

from torch import Tensor

IGNORE = -100  # target of a position that is not trained
PADDING = -1  # document of a padding position
SHARED, CHOSEN, REJECTED = 0, 1, 2  # branches


class Batch(NamedTuple):
    """Token ids with, for each, what it must predict, and two integers that say who may see whom.

    Args:
        input_ids: [R, T] token ids.
        targets: [R, T] the token that each position must predict, or -100. Already shifted: nothing shifts again.
        position_ids: [R, T] place of the token in its own sequence.
        document: [R, T] which example of the batch the token belongs to, 0..N-1; -1 is padding.
        branch: [R, T] 0 shared, 1 chosen, 2 rejected. SFT has only 0.
        example_ids: [N] row numbers in the data set.
        causal: True if each row holds one document without branches, so that causal attention alone is right.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    document: Tensor
    branch: Tensor
    example_ids: Tensor
    causal: bool

    @property
    def num_examples(self) -> int:
        """N, the number of chats or pairs; 0 in the empty batch that keeps ranks in step."""
        return self.example_ids.numel()

    def num_tokens(self) -> Tensor:
        """Number of real (not padding) positions, a scalar on the batch's device."""
        return (self.document != PADDING).sum()

    def num_targets(self) -> Tensor:
        """Number of trained positions, a scalar on the batch's device."""
        return (self.targets != IGNORE).sum()
