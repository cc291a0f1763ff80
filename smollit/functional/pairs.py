"""Pairs: a chosen and a rejected response to one prompt, as sums over the loss tokens of each. P pairs."""

from typing import NamedTuple

from torch import Tensor


class Pairs(NamedTuple):
    """The inputs of a preference loss. The columns of [P, 2] are the chosen and the rejected response.

    Args:
        policy: [P, 2] log pi(y | x), a sum over the response's tokens, with gradient.
        reference: [P, 2] log pi_ref(y | x), likewise, without gradient.
        num_tokens: [P, 2] number of loss tokens of the response.
        logits: [P, 2] sum over the loss tokens of their mean logit over the vocabulary; only metrics use it.
        score_gap: [P] score of the chosen minus score of the rejected response; None if a pair has none.
        common_policy: [P, 2] `policy` over the first L tokens alone, where L is the length of the shorter response;
            None unless requested, as are the following.
        common_reference: [P, 2] `reference` over the same tokens.
        relative_logps: [P, 2] mean over the response's tokens of log p(token) - log sum_v p_v^2, without gradient.
        entropies: [P, 2] sum over the response's tokens of the entropy of the policy, in nats; only metrics use it.
    """

    policy: Tensor
    reference: Tensor
    num_tokens: Tensor
    logits: Tensor
    score_gap: Tensor | None = None
    common_policy: Tensor | None = None
    common_reference: Tensor | None = None
    relative_logps: Tensor | None = None
    entropies: Tensor | None = None

    @property
    def log_ratios(self) -> Tensor:
        """log pi(y | x) - log pi_ref(y | x), [P, 2]."""
        return self.policy - self.reference

    @property
    def margin(self) -> Tensor:
        """Log-ratio of the chosen minus log-ratio of the rejected response, [P]: what beta multiplies in eq. 7."""
        chosen, rejected = self.log_ratios.unbind(dim=1)
        return chosen - rejected

    @property
    def margin_per_token(self) -> Tensor:
        """The same with each log-ratio divided by the number of tokens of its response, [P]."""
        chosen, rejected = (self.log_ratios / self.num_tokens).unbind(dim=1)
        return chosen - rejected


def implicit_rewards(policy_logps: Tensor, reference_logps: Tensor, beta: float) -> Tensor:
    """r = beta (log pi(y | x) - log pi_ref(y | x)), for tensors of one shape.

    Eq. 5 of https://arxiv.org/abs/2305.18290, without the term that is the same for all responses to a prompt.
    """
    if policy_logps.shape != reference_logps.shape:
        expected, found = tuple(policy_logps.shape), tuple(reference_logps.shape)
        raise ValueError(f"`reference_logps` must be {expected} to match `policy_logps`, got {found}")
    return beta * (policy_logps - reference_logps)
