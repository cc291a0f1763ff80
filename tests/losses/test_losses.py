"""Each loss against hand arithmetic, and against its paper's equation written out and differentiated by autograd."""

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.functional.head import Head, LogitScaling
from smollit.functional.pairs import Pairs, implicit_rewards
from smollit.functional.scores import TokenScores
from smollit.functional.sums import sum_per_sequence
from smollit.losses import (
    AOT,
    BCO,
    CPO,
    DFT,
    DPO,
    EXO,
    FDPO,
    IPO,
    LDDPO,
    LNDPO,
    NCA,
    NLL,
    ORPO,
    SPPO,
    WPO,
    AOTUnpaired,
    APODown,
    APOZero,
    DiscoPOP,
    Hinge,
    PreferenceLoss,
    Robust,
    SimPO,
    Sum,
)


def make_pairs(policy: Any, reference: Any, num_tokens: Any = None, gaps: list[float] | None = None) -> Pairs:
    """Pairs from numbers: [chosen, rejected] of each."""
    policy, reference = (torch.as_tensor(logps, dtype=torch.float64) for logps in (policy, reference))
    num_tokens = torch.ones_like(policy) if num_tokens is None else torch.tensor(num_tokens, dtype=torch.float64)
    gap = None if gaps is None else torch.tensor(gaps, dtype=torch.float64)
    return Pairs(policy, reference, num_tokens, torch.zeros_like(policy), gap)


def softplus(x: float) -> float:
    """log(1 + e^x), so -log sigmoid(-x)."""
    return math.log(1 + math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Chosen -8 against -12 over 4 tokens, rejected -9 against -6 over 3: log-ratios 4 and -3, margin 7.
PAIR = ([[-8.0, -9.0]], [[-12.0, -6.0]], [[4, 3]])


# promise: losses
# case: dpo-loss-10, dpo-loss-11
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DPO(), softplus(-0.7)),  # -log sigmoid(0.1 x 7)
        (DPO(beta=0.2), softplus(-1.4)),
        (DPO(label_smoothing=0.1), 0.9 * softplus(-0.7) + 0.1 * softplus(0.7)),
        (DPO(scores="offset", score_scale=0.5), softplus(-0.7 + 0.5 * 3)),  # a gap of 3
        (IPO(), 9.0),  # means over tokens: 4/4 - (-3/3) = 2; the target is 1 / (2 x 0.1) = 5; (2 - 5)^2
        (Hinge(), 0.3),  # 1 - 0.1 x 7
        (Hinge(beta=0.2), 0.0),  # 1 - 1.4 is below 0
        (IPO(nll_weight=0.5), 9.0 + 0.5 * 8 / 4),  # 8 nats over 4 tokens
        (Robust(label_smoothing=0.1), (0.9 * softplus(-0.7) - 0.1 * softplus(0.7)) / 0.8),
        (  # q = (sigmoid(0.7), sigmoid(-0.7)) against (0.9, 0.1)
            EXO(label_smoothing=0.1),
            sigmoid(0.7) * math.log(sigmoid(0.7) / 0.9) + sigmoid(-0.7) * math.log(sigmoid(-0.7) / 0.1),
        ),
        (LNDPO(beta=0.5), softplus(-0.5 * 2)),  # means over tokens: 1 - -1
        (  # x = 0.7, w = sigmoid(0.7 / 0.5)
            DiscoPOP(beta=0.1, tau=0.5),
            (1 - sigmoid(1.4)) * softplus(-0.7) + sigmoid(1.4) * math.exp(-0.7),
        ),
        (NCA(), softplus(-0.4) + softplus(0.4) / 2 + softplus(-0.3) / 2),  # beta a = 0.4, beta b = -0.3
        (BCO(), softplus(-0.4) + softplus(-0.3)),
        (SPPO(), 1.0 + 4.0),  # (4 - 5)^2 + (-3 + 5)^2
        (APOZero(), 1 - sigmoid(0.4) + sigmoid(-0.3)),
        (APODown(), sigmoid(0.4) + 1 - sigmoid(0.7)),
        (FDPO(), softplus(-0.1 * ((1 - math.exp(-4)) - (1 - math.exp(3))))),
        (FDPO(divergence="js"), softplus(-0.1 * (math.log(sigmoid(4)) - math.log(sigmoid(-3))))),
        (FDPO(divergence="alpha"), softplus(-0.1 * 2 * (math.exp(1.5) - math.exp(-2)))),  # (e^(-u/2) - 1) / -1/2
        (AOT(), softplus(-0.7)),  # one pair: nothing to sort
        (AOTUnpaired(label_smoothing=0.1), 0.9 * softplus(-0.7) + 0.1 * softplus(0.7)),
        (CPO(), softplus(-0.1 * 1) + 8 / 4),  # log p: -8 - -9 = 1; the NLL is part of the paper's loss
        (SimPO(), softplus(1.0 - 2.0 * (-2 + 3))),  # means over tokens: -2 and -3
        (  # odds of e^-2 and e^-3, and the NLL per token, 2
            ORPO(),
            2 + 0.1 * math.log(1 + (math.exp(-3) / (1 - math.exp(-3))) / (math.exp(-2) / (1 - math.exp(-2)))),
        ),
        (Sum(losses=[DPO(), SPPO()], weights=[2.0, 0.5]), 2 * softplus(-0.7) + 0.5 * 5),
        (Sum(losses=[Hinge(), CPO()]), 0.3 + softplus(-0.1) + 2),
    ],
    ids=repr,
)
def test_each_loss_has_its_value(loss: PreferenceLoss, expected: float) -> None:
    """One pair; the weight is 1."""
    losses, weights = loss(make_pairs(*PAIR, gaps=[3.0]))
    assert losses.item() == pytest.approx(expected, abs=1e-12)
    assert weights.tolist() == [1.0]


def written_out(loss: PreferenceLoss, pairs: Pairs) -> Tensor:
    """The papers' equations, with the sigmoid and the means as they stand there."""
    (chosen, rejected), (ref_chosen, ref_rejected) = pairs.policy.T, pairs.reference.T
    margin = torch.log(chosen.exp() / ref_chosen.exp()) - torch.log(rejected.exp() / ref_rejected.exp())
    if isinstance(loss, IPO):
        means = (pairs.policy - pairs.reference) / pairs.num_tokens
        return (means[:, 0] - means[:, 1] - 1 / (2 * loss.beta)) ** 2
    if isinstance(loss, Hinge):
        return torch.maximum(torch.zeros(()).double(), 1 - loss.beta * margin)
    assert isinstance(loss, DPO)
    right, wrong = (1 / (1 + torch.exp(-sign * loss.beta * margin)) for sign in (1, -1))
    return -(1 - loss.label_smoothing) * torch.log(right) - loss.label_smoothing * torch.log(wrong)


# promise: losses
@pytest.mark.parametrize("loss", [DPO(beta=0.3), DPO(beta=0.3, label_smoothing=0.2), IPO(beta=0.3), Hinge(beta=0.3)])
def test_gradients_are_those_of_the_papers_equation(loss: PreferenceLoss) -> None:
    """6 random pairs: losses, and gradients with respect to log pi of both responses."""
    torch.manual_seed(0)
    logps, reference = torch.randn(2, 6, 2, dtype=torch.float64).mul(3).sub(10)
    num_tokens = torch.randint(1, 9, (6, 2)).tolist()
    found, expected = (make_pairs(logps.clone(), reference, num_tokens) for _ in range(2))
    for pairs in (found, expected):
        pairs.policy.requires_grad_()
    losses = loss(found)[0]
    torch.testing.assert_close(losses, written_out(loss, expected))
    losses.sum().backward()
    written_out(loss, expected).sum().backward()
    torch.testing.assert_close(found.policy.grad, expected.policy.grad)


# case: dpo-loss-01
def test_equal_policies_cost_log_two_and_pull_the_responses_apart() -> None:
    """Margin 0 -> -log sigmoid(0) = ln 2; d/d chosen = -beta (1 - sigmoid(0)) = -0.05, and +0.05 for rejected."""
    pairs = make_pairs([[-3.0, -5.0]], [[-3.0, -5.0]])
    pairs.policy.requires_grad_()
    losses, _ = DPO()(pairs)
    losses.sum().backward()
    assert losses.item() == pytest.approx(math.log(2), abs=1e-12)
    assert pairs.policy.grad is not None
    assert pairs.policy.grad.tolist() == [[pytest.approx(-0.05), pytest.approx(0.05)]]


def test_a_smoothed_loss_is_least_where_the_policy_doubts_as_much_as_the_labels() -> None:
    """e = 0.1: the derivative is 0 at sigmoid(beta m) = 0.9, so at beta m = ln 9."""
    pairs = make_pairs([[math.log(9) / 0.1, 0.0]], [[0.0, 0.0]])
    pairs.policy.requires_grad_()
    DPO(label_smoothing=0.1)(pairs)[0].sum().backward()
    assert pairs.policy.grad is not None
    assert pairs.policy.grad.abs().max().item() == pytest.approx(0.0, abs=1e-12)


def test_far_margins_stay_finite() -> None:
    """beta m = -1,000 in fp32: the loss is 1,000, not the infinity of log(sigmoid)."""
    zeros = torch.zeros(1, 2)
    pairs = Pairs(torch.tensor([[0.0, 10_000.0]]), zeros, zeros + 1, zeros)
    assert DPO()(pairs)[0].item() == 1000.0


def test_an_offset_equal_to_the_scaled_margin_costs_log_two() -> None:
    """Margins 6, -1 and 2, beta 0.5, gaps 1, 2 and 1: -log sigmoid of 3 - 1, -0.5 - 2 and 1 - 1."""
    pairs = make_pairs([[2.0, -4.0], [0.0, 1.0], [4.0, 2.0]], torch.zeros(3, 2), gaps=[1.0, 2.0, 1.0])
    found = DPO(beta=0.5, scores="offset")(pairs)[0]
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(x)) for x in (-2, 2.5, 0)], abs=1e-12)


@pytest.mark.parametrize("loss", [DPO, IPO, Hinge])
def test_weights_are_the_scaled_gaps_and_never_negative(loss: type[PreferenceLoss]) -> None:
    """Gaps 1.5, 0 and -2 at scale 2: weights 3, 0 and 0; the losses stay those without weights."""
    pairs = make_pairs([[2.0, -4.0]] * 3, torch.zeros(3, 2), gaps=[1.5, 0.0, -2.0])
    losses, weights = loss(scores="weight", score_scale=2.0)(pairs)
    assert weights.tolist() == [3.0, 0.0, 0.0]
    assert torch.equal(losses, loss()(pairs)[0])


@pytest.mark.parametrize("scores", ["weight", "offset"])
def test_scores_must_be_there_to_be_used(scores: Any) -> None:
    """Pairs without scores: refused, with what to do; ignored, they are pairs like any other."""
    with pytest.raises(ValueError, match=rf"`model.loss.scores` is {scores}, and some pairs have no scores.*`ignore`"):
        DPO(scores=scores)(make_pairs(*PAIR))
    DPO()(make_pairs(*PAIR))


def test_rewards_are_beta_times_the_log_ratio_without_gradient() -> None:
    """beta 0.5: (-8 - -12) / 2 = 2 and (-9 - -6) / 2 = -1.5; eq. 5."""
    pairs = make_pairs(*PAIR)
    pairs.policy.requires_grad_()
    rewards = Hinge(beta=0.5).rewards(pairs)
    assert {side: reward.tolist() for side, reward in rewards.items()} == {"chosen": [2.0], "rejected": [-1.5]}
    assert not any(reward.requires_grad for reward in rewards.values())
    with pytest.raises(ValueError, match=r"`reference_logps` must be \(1,\) to match"):
        implicit_rewards(torch.zeros(1), torch.zeros(2), beta=0.1)


# case: dpo-loss-11
@pytest.mark.parametrize(
    ("loss", "option", "value"),
    [
        (DPO, "beta", 0.0),
        (IPO, "beta", -1.0),
        (DPO, "label_smoothing", 0.5),
        (DPO, "label_smoothing", -0.1),
        (Hinge, "nll_weight", -1.0),
        (DPO, "score_scale", 0.0),
        (DPO, "beta", math.nan),
        (Robust, "label_smoothing", 0.5),
        (EXO, "label_smoothing", 0.0),
        (SimPO, "gamma", math.inf),
        (DiscoPOP, "tau", 0.0),
        (FDPO, "alpha", 1.0),
        (LDDPO, "alpha", 1.5),
        (NLL, "label_smoothing", 1.0),
        (AOT, "label_smoothing", 0.7),
    ],
)
def test_arguments_without_a_meaning_are_refused(loss: Any, option: str, value: float) -> None:
    """The setting and the value are named."""
    with pytest.raises(ValueError, match=rf"`model.loss.{option}` must be .*, got {value}"):
        loss(**{option: value})


def test_a_loss_has_only_arguments_that_it_uses_and_never_changes() -> None:
    """Neither IPO nor Hinge can be given label smoothing; all arguments are keywords."""
    for loss in (IPO, Hinge):
        with pytest.raises(TypeError, match="label_smoothing"):
            loss(label_smoothing=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        DPO(0.1)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        DPO().beta = 0.2  # type: ignore[misc]


def test_robust_is_right_in_the_mean_over_swapped_labels() -> None:
    """A label that is swapped with probability 0.2: 0.8 loss(m) + 0.2 loss(-m) is the DPO loss of the true label."""
    true, flipped = make_pairs([[7.0, 0.0]], [[0.0, 0.0]]), make_pairs([[0.0, 7.0]], [[0.0, 0.0]])
    loss = Robust(label_smoothing=0.2)
    mean = 0.8 * loss(true)[0] + 0.2 * loss(flipped)[0]
    torch.testing.assert_close(mean, DPO()(true)[0])


def test_aot_compares_sorted_values() -> None:
    """Policy differences 3, 2 and reference differences 0, 5: sorted, 3 - 5 = -2 and 2 - 0 = 2. Unpaired: log-ratios of
    chosen 3, -4, of rejected 0, -1 give 3 - 0 and -4 + 1. In another order the losses go with their pairs."""
    policy, reference = [[3.0, 0.0], [1.0, -1.0]], [[0.0, 0.0], [5.0, 0.0]]
    ordered, swapped = make_pairs(policy, reference), make_pairs(policy[::-1], reference[::-1])
    for loss, expected in [
        (AOT(beta=1.0), [softplus(2), softplus(-2)]),
        (AOTUnpaired(beta=1.0), [softplus(-3), softplus(3)]),
    ]:
        assert loss(ordered)[0].tolist() == pytest.approx(expected)
        assert loss(swapped)[0].tolist() == pytest.approx(expected[::-1])
    assert AOT().couples_pairs and Sum(losses=[DPO(), AOT()]).couples_pairs and not DPO().couples_pairs


def test_rewards_without_a_reference_are_of_the_policy_alone() -> None:
    """SimPO, beta 2: 2 x -8/4 and 2 x -9/3; a sum needs a reference if a part of it does."""
    rewards = SimPO().rewards(make_pairs(*PAIR))
    assert {side: reward.tolist() for side, reward in rewards.items()} == {"chosen": [-4.0], "rejected": [-6.0]}
    needs = [loss.needs_reference for loss in (SimPO(), Sum(losses=[CPO(), ORPO()]), Sum(losses=[CPO(), DPO()]))]
    assert needs == [False, False, True]


def test_a_sum_has_a_weight_for_each_loss() -> None:
    """No losses, too few weights, a negative weight, weights of pairs in a part or of pairs that a part compares: each
    is refused by name."""
    for options, words in [
        ({"losses": []}, "losses` must name at least one"),
        ({"losses": [DPO(), IPO()], "weights": [1.0]}, "one number for each of 2 losses"),
        ({"losses": [DPO()], "weights": [-1.0]}, "weights` must be at least 0"),
        ({"losses": [DPO(scores="weight")]}, "set `model.loss.scores` of the sum"),
        ({"losses": [DPO(), AOT()], "scores": "weight"}, "Sum compares the pairs of a micro-batch with each other"),
    ]:
        with pytest.raises(ValueError, match=words):
            Sum(**options)  # type: ignore[arg-type]


def test_extreme_log_ratios_stay_finite() -> None:
    """Log-ratios of +-1,000 in fp32: every loss and gradient is a number."""
    zeros = torch.zeros(2, 2)
    names = [DPO, Robust, EXO, Hinge, IPO, LNDPO, DiscoPOP, NCA, BCO, SPPO, APOZero, APODown, AOT, CPO, SimPO, ORPO]
    for loss in [*(name() for name in names), FDPO(), FDPO(divergence="js"), FDPO(divergence="alpha")]:
        policy = torch.tensor([[-1000.0, -2.0], [-1.0, -1000.0]], requires_grad=True)
        losses = loss(Pairs(policy, zeros, zeros + 1, zeros))[0]
        losses.sum().backward()
        assert policy.grad is not None
        assert losses.isfinite().all() and policy.grad.isfinite().all(), loss


def test_lddpo_discounts_what_the_longer_response_has_more() -> None:
    """Log-probabilities of 3 and 2 tokens, L = 2, alpha 0.25: policy -6 + 0.25 x -4 = -7 against -8, reference -6 +
    0.25 x -2 = -6.5 against -8, margin 1 - 1.5 = -0.5; a response may be in two pairs, each with an L of its own."""
    sequence, pairs = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([[0, 1], [0, 2]])
    policy, reference = torch.tensor([-1.0, -5, -4, -3, -5, -2]), torch.tensor([-5.0, -1, -2, -4, -4, -1])
    sums = sum_per_sequence(policy, sequence, 3)
    scores = TokenScores(sums, policy, sequence, None, policy, pairs, None)
    found = scores.per_pair(reference=sum_per_sequence(reference, sequence, 3), reference_tokens=reference)
    loss = LDDPO(beta=1.0, alpha=0.25)
    losses, _ = loss(found)
    assert losses[0].item() == pytest.approx(softplus(0.5), abs=1e-6)
    # L = 1: policy -1 + 0.25 x -9 against -2, reference -5 + 0.25 x -3 against -1
    assert losses[1].item() == pytest.approx(softplus(-((-3.25 + 2) - (-5.75 + 1))), abs=1e-6)
    assert loss.rewards(found)["chosen"].tolist() == pytest.approx([-0.5, 2.5])
    torch.testing.assert_close(LDDPO(alpha=1.0)(found)[0], DPO()(found)[0])
    assert Sum(losses=[WPO(), loss]).needs_common_length and Sum(losses=[WPO(), loss]).needs_relative_logps


def test_wpo_weights_pairs_by_how_probable_both_responses_are() -> None:
    """Two tokens of p = (0.5, 0.25, 0.25), label 0.5: w = 0.5 / 0.375; one token of (0.8, 0.1, 0.1), label 0.1: 0.1 /
    0.66. The product multiplies the loss and has no gradient."""
    pairs = make_pairs(*PAIR)._replace(relative_logps=torch.tensor([[0.5 / 0.375, 0.1 / 0.66]]).double().log())
    losses, weights = WPO()(pairs)
    assert losses.item() == pytest.approx(0.5 / 0.375 * 0.1 / 0.66 * softplus(-0.7)) and weights.tolist() == [1.0]
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]).log()
    found = Head(torch.eye(3)).log_sum_squares(logits, chunk_size=1)
    torch.testing.assert_close(found.exp(), torch.tensor([0.375, 0.66]))


def test_label_smoothing_is_the_cross_entropy_to_smoothed_labels() -> None:
    """torch's own cross_entropy on the logits, value and gradient, with a scale, and refused with a softcap."""
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(5, 4), torch.randn(7, 4), torch.randint(7, (5,))
    expected, found = (tensor.clone().requires_grad_() for tensor in (hidden, hidden))
    theirs = F.cross_entropy(0.5 * expected @ weight.T, labels, label_smoothing=0.1, reduction="sum")
    logps = F.log_softmax(0.5 * found @ weight.T, dim=1).gather(1, labels[:, None])[:, 0]
    excess = Head(weight, scaling=LogitScaling(scale=0.5)).excess_logits(found, labels)
    ours, count = NLL(label_smoothing=0.1)(
        TokenScores(logps.sum()[None], logps, torch.zeros(5).long(), None, None, None, None, excess_logits=excess)
    )
    assert count == 5
    torch.testing.assert_close(
        (ours, torch.autograd.grad(ours, found)), (theirs, torch.autograd.grad(theirs, expected))
    )
    with pytest.raises(ValueError, match="label_smoothing` is not available for models with a softcap"):
        Head(weight, scaling=LogitScaling(softcap=30.0)).excess_logits(found, labels)


def test_dft_weights_each_token_with_its_probability_without_gradient() -> None:
    """log p = log 0.5 and log 0.1: 0.5 ln 2 + 0.1 ln 10; gradients -0.5 and -0.1, where NLL has -1 and -1."""
    logps = torch.tensor([0.5, 0.1], dtype=torch.float64).log().requires_grad_()
    scores = TokenScores(logps.sum()[None], logps, torch.zeros(2).long(), None, None, None, None)
    loss, count = DFT()(scores)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.1 * math.log(10)) and count == 2
    assert logps.grad is not None and logps.grad.tolist() == pytest.approx([-0.5, -0.1])
    assert NLL()(scores)[0].item() == pytest.approx(math.log(20))
