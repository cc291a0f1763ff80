"""Preference losses against hand arithmetic and autograd."""

import math

import pytest
import torch
from torch import Tensor

from smollit.functional.preference import (
    PreferenceLoss,
    hinge_loss,
    implicit_rewards,
    preference_loss,
    sigmoid_loss,
)


def pair_loss(
    chosen: float, rejected: float, loss: PreferenceLoss, lengths: tuple[int, int] = (1, 1), **options: float
):
    """The loss of one pair, from its two log-ratios."""
    tensors = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, *lengths)]
    return preference_loss(*tensors, loss, options.get("beta", 0.1), options.get("label_smoothing", 0.0))


# case: dpo-loss-01
def test_equal_policies_cost_log_two_and_pull_the_answers_apart() -> None:
    """Margin 0 -> -log sigmoid(0) = ln 2; d/d chosen = -beta (1 - sigmoid(0)) = -0.05, and +0.05 for rejected."""
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    loss = preference_loss(chosen, rejected, torch.ones(1), torch.ones(1), "sigmoid", beta=0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == (pytest.approx(-0.05), pytest.approx(0.05))


# case: dpo-loss-10
def test_sigmoid_takes_sums_and_ipo_takes_means() -> None:
    """Chosen -8 against -12 over 4 tokens, rejected -9 against -6 over 3, beta 0.1.
    Sigmoid: 0.1 (4 + 3) = 0.7 -> ln(1 + e^-0.7) = 0.4032. IPO: h = 4/4 - (-3/3) = 2, target 5 -> 9."""
    log_ratios = (-8 - -12, -9 - -6)
    assert pair_loss(*log_ratios, "sigmoid", (4, 3)).item() == pytest.approx(math.log(1 + math.exp(-0.7)), abs=1e-9)
    assert pair_loss(*log_ratios, "sigmoid", (4, 3)).item() == pytest.approx(0.4032, abs=5e-5)
    assert pair_loss(*log_ratios, "ipo", (4, 3)).item() == pytest.approx(9.0, abs=1e-9)


# case: dpo-loss-11
@pytest.mark.parametrize(
    ("loss", "label_smoothing", "expected"),
    [("sigmoid", 0.0, 0.437488), ("hinge", 0.0, 0.4), ("sigmoid", 0.1, 0.497488)],
)
def test_each_loss_has_its_value(loss: PreferenceLoss, label_smoothing: float, expected: float) -> None:
    """Margin 6, beta 0.1, so x = 0.6: ln(1+e^-x) = 0.437488; 1-x = 0.4; 0.9 ln(1+e^-x) + 0.1 ln(1+e^x) = 0.497488."""
    assert pair_loss(2.0, -4.0, loss, label_smoothing=label_smoothing).item() == pytest.approx(expected, abs=1e-6)


def test_an_offset_is_taken_from_the_scaled_margin() -> None:
    """Margins 6 and -1, beta 0.5, offsets 1 and 2: -log sigmoid(3 - 1) and -log sigmoid(-0.5 - 2); an offset equal to
    the scaled margin costs ln 2."""
    chosen, rejected = torch.tensor([2.0, 0.0, 4.0]).double(), torch.tensor([-4.0, 1.0, 2.0]).double()
    ones = torch.ones(3)
    offset = torch.tensor([1.0, 2.0, 1.0]).double()
    found = preference_loss(chosen, rejected, ones, ones, "sigmoid", beta=0.5, offset=offset)
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2.5)), math.log(2)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_hinge_is_zero_beyond_its_margin() -> None:
    """beta m = 2 -> max(0, 1 - 2) = 0."""
    assert hinge_loss(torch.tensor([20.0]), beta=0.1).item() == 0.0


def test_smoothed_loss_is_least_where_the_model_doubts_as_much_as_the_labels() -> None:
    """e = 0.1: d/dm = 0 at sigmoid(beta m) = 0.9, so beta m = ln 9."""
    margin = torch.tensor([math.log(9) / 0.1], dtype=torch.float64, requires_grad=True)
    sigmoid_loss(margin, beta=0.1, label_smoothing=0.1).sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_gradients_are_those_of_the_plain_formula(loss: PreferenceLoss) -> None:
    """Each loss written out as in its paper, and differentiated by autograd, on 6 random pairs."""
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64).mul(3)
    lengths = torch.randint(1, 9, (2, 6))

    def plain(chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = chosen - rejected
        if loss == "sigmoid":
            return -torch.log(1 / (1 + torch.exp(-0.3 * margin)))
        if loss == "hinge":
            return torch.maximum(torch.zeros(()).double(), 1 - 0.3 * margin)
        return (chosen / lengths[0] - rejected / lengths[1] - 1 / 0.6) ** 2

    found = [tensor.clone().requires_grad_() for tensor in (chosen, rejected)]
    expected = [tensor.clone().requires_grad_() for tensor in (chosen, rejected)]
    losses = preference_loss(*found, lengths[0], lengths[1], loss, beta=0.3)
    torch.testing.assert_close(losses, plain(*expected))
    losses.sum().backward()
    plain(*expected).sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_far_margins_stay_finite() -> None:
    """beta m = -1,000: the loss is 1,000, not inf as log(sigmoid) would give in fp32."""
    assert sigmoid_loss(torch.tensor([-1000.0]), beta=1.0).item() == 1000.0


def test_rewards_are_beta_times_the_log_ratio() -> None:
    """beta 0.5: (-8 - -12) / 2 = 2."""
    assert implicit_rewards(torch.tensor([-8.0]), torch.tensor([-12.0]), beta=0.5).item() == 2.0


def test_shapes_must_match() -> None:
    """One log-probability beside two."""
    with pytest.raises(ValueError, match="reference_logps"):
        implicit_rewards(torch.zeros(1), torch.zeros(2), beta=0.1)
    with pytest.raises(ValueError, match="rejected_log_ratio"):
        preference_loss(torch.zeros(1), torch.zeros(2), torch.ones(1), torch.ones(1), "sigmoid", 0.1)
