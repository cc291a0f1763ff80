"""RowValues: the loss of each row of a batch, and of a pair its margin. N chats or pairs."""

from typing import NamedTuple

import torch
from torch import Tensor

from smollit.batch import Batch
from smollit.functional.sums import sum_per_sequence


class RowValues(NamedTuple):
    """What a batch says about each of its rows, without gradient. A row of several pairs has a value for each.

    Args:
        stage: Stage that the batch is part of: `train`, `val`, `val/<set>` or `test`.
        rows: [N] row numbers in the data set.
        losses: [N] mean loss of the chat per loss token, or loss of the pair.
        weights: [N] loss tokens of the chat, or weight of the pair: the weighted mean of `losses` is the logged loss.
        margins: [N] chosen reward minus rejected reward; None for chats.
    """

    stage: str
    rows: Tensor
    losses: Tensor
    weights: Tensor
    margins: Tensor | None = None

    @classmethod
    def of_chats(cls, stage: str, batch: Batch, logps: Tensor) -> "RowValues":
        """The mean negative log-likelihood of each chat of a batch, from the log-probabilities of its loss tokens, [M].

        Args:
            stage: Stage that the batch is part of.
            batch: Chats.
            logps: [M] log-probabilities of the labels.
        """
        document_M = batch.document.view(-1)[batch.loss_positions]
        counts = sum_per_sequence(torch.ones_like(logps), document_M, batch.num_examples)
        sums = sum_per_sequence(logps.detach(), document_M, batch.num_examples)
        return cls(stage, batch.example_ids, -sums / counts, counts)
