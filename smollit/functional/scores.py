"""TokenScores: a model's scores of the loss tokens of a batch. M loss tokens, S responses, P pairs."""

from typing import NamedTuple

import torch
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.functional.sums import sum_over_common_length, sum_per_sequence


class TokenScores(NamedTuple):
    """Scores of the M loss tokens of a batch, in order, and their sums over each of its S responses.

    A batch of chats has one sum, over all its loss tokens.

    Args:
        sums: [S] sums of `logps`, with gradient: log p(response | prompt) of each response.
        logps: [M] log p(label | prefix), fp32; with gradient only where it was requested.
        response: [M] index of each token's response, counted through the batch; 0 for chats.
        correct: [M] bool, True where the label has the largest logit; None unless requested.
        mean_logits: [M] mean of the logits over the vocabulary, without gradient; None unless requested.
        pairs: [P, 2] indices of the chosen and the rejected response; None for chats.
        score_gap: [P] score of the chosen minus score of the rejected response, where every pair has scores.
        entropies: [M] entropy of the distribution over the vocabulary, in nats, without gradient; None unless
            requested, as are the following.
        relative_logps: [M] `logps` - log sum_v p_v^2, without gradient.
        excess_logits: [M] logit of the label minus the mean logit, with gradient.
    """

    sums: Tensor
    logps: Tensor
    response: Tensor
    correct: Tensor | None
    mean_logits: Tensor | None
    pairs: Tensor | None
    score_gap: Tensor | None
    entropies: Tensor | None = None
    relative_logps: Tensor | None = None
    excess_logits: Tensor | None = None

    def per_response(self, values_M: Tensor) -> Tensor:
        """Sums of the loss tokens' values over each response: [M] -> [S]."""
        return sum_per_sequence(values_M, self.response, self.sums.numel())

    def per_pair(self, *, reference: Tensor, reference_tokens: Tensor | None = None) -> Pairs:
        """The pairs of responses that the batch compares.

        Args:
            reference: [S] log p of each response under the reference.
            reference_tokens: [M] log p of each loss token under the reference, for sums over the common length.
        """
        assert self.pairs is not None, "a batch of chats has no pairs"
        assert self.mean_logits is not None, "the policy is called with mean_logits=True"
        num_tokens, logits = self.per_response(torch.ones_like(self.logps)), self.per_response(self.mean_logits)
        policy, reference, num_tokens, logits = (
            values[self.pairs] for values in (self.sums, reference, num_tokens, logits)
        )
        pairs = Pairs(policy, reference, num_tokens, logits, self.score_gap)
        if reference_tokens is not None:
            common = (self._over_common_length(values) for values in (self.logps, reference_tokens))
            pairs = pairs._replace(common_policy=next(common), common_reference=next(common))
        if self.relative_logps is not None:
            pairs = pairs._replace(relative_logps=self.per_response(self.relative_logps)[self.pairs] / num_tokens)
        if self.entropies is not None:
            pairs = pairs._replace(entropies=self.per_response(self.entropies)[self.pairs])
        return pairs

    def _over_common_length(self, values_M: Tensor) -> Tensor:
        assert self.pairs is not None
        return sum_over_common_length(values_M, self.response, self.pairs, self.sums.numel())
