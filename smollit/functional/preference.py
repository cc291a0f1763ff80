"""The DPO family of losses and the implicit rewards. B is the number of pairs."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Literal["sigmoid", "ipo", "hinge"]


def implicit_rewards(policy_logps: Tensor, reference_logps: Tensor, beta: float) -> Tensor:
    """r = beta (log pi(y|x) - log pi_ref(y|x)): [B], [B] -> [B]. Eq. 5 of https://arxiv.org/abs/2305.18290, without
    the term that is the same for both answers."""
    if policy_logps.shape != reference_logps.shape:
        raise ValueError(
            f"`reference_logps` must be {tuple(policy_logps.shape)} like `policy_logps`,"
            f" got {tuple(reference_logps.shape)}"
        )
    return beta * (policy_logps - reference_logps)


def sigmoid_loss(margin: Tensor, beta: float, label_smoothing: float = 0.0, offset: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(beta m), eq. 7 of https://arxiv.org/abs/2305.18290; `margin` [B] is the chosen-minus-rejected
    log-ratio. With `label_smoothing` e, the conservative DPO of eq. 3 of https://ericmitchell.ai/cdpo.pdf:
    -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m). With `offset` d, [B], the DPO with an offset of
    https://arxiv.org/abs/2402.10571: beta m - d in place of beta m. Returns one loss per pair, [B]."""
    logit = beta * margin - offset
    return (1 - label_smoothing) * F.softplus(-logit) + label_smoothing * F.softplus(logit)


def hinge_loss(margin: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta m), from SLiC-HF, https://arxiv.org/abs/2305.10425, with the log-ratio margin [B]."""
    return torch.relu(1 - beta * margin)


def ipo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2, eq. 17 of https://arxiv.org/abs/2310.12036, [B].

    h is the difference of the two log-ratios, each a mean over the answer's tokens, so that the target does not
    depend on the answers' lengths.
    """
    return (chosen_log_ratio - rejected_log_ratio - 1 / (2 * beta)).square()


def preference_loss(
    chosen_log_ratio: Tensor,
    rejected_log_ratio: Tensor,
    num_chosen: Tensor,
    num_rejected: Tensor,
    loss: PreferenceLoss,
    beta: float,
    label_smoothing: float = 0.0,
    offset: Tensor | float = 0.0,
) -> Tensor:
    """One loss per pair, [B], of the kind that `loss` names.

    Args:
        chosen_log_ratio: [B] log pi(chosen) - log pi_ref(chosen), a sum over the answer's tokens.
        rejected_log_ratio: [B] likewise for the rejected answer.
        num_chosen: [B] number of scored tokens of the chosen answer; only `ipo` uses it.
        num_rejected: [B] likewise for the rejected answer.
        loss: `sigmoid` and `hinge` use sums over tokens, `ipo` means.
        beta: How closely the policy keeps to the reference, above 0.
        label_smoothing: Share of pairs assumed to be labelled the wrong way round; `sigmoid` only.
        offset: [B] by how much beta times the margin should exceed 0; `sigmoid` only.
    """
    if chosen_log_ratio.shape != rejected_log_ratio.shape:
        raise ValueError(
            f"`rejected_log_ratio` must be {tuple(chosen_log_ratio.shape)} like `chosen_log_ratio`,"
            f" got {tuple(rejected_log_ratio.shape)}"
        )
    if loss == "ipo":
        return ipo_loss(chosen_log_ratio / num_chosen, rejected_log_ratio / num_rejected, beta)
    margin = chosen_log_ratio - rejected_log_ratio
    if loss == "hinge":
        return hinge_loss(margin, beta)
    return sigmoid_loss(margin, beta, label_smoothing, offset)
