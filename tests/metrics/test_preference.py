"""Preference metrics: names, ties, weights, and metrics that look equal in the first batch."""

import pytest
import torch
from torchmetrics import MetricCollection

from smollit.functional.pairs import Pairs
from smollit.metrics import RewardAccuracy, RewardMargin, preference_metrics, values


def count(collection: MetricCollection, chosen: list[float], rejected: list[float], weight: float = 1.0) -> None:
    """One batch of rewards; log-probabilities are 10 times them, logit sums of 2 tokens 100 times; losses 0.5."""
    rewards = torch.tensor([chosen, rejected]).T
    pairs = Pairs(10 * rewards, torch.zeros_like(rewards), torch.full_like(rewards, 2), 100 * rewards)
    losses = torch.full((len(chosen),), 0.5)
    collection.update(
        pairs=pairs,
        losses=losses,
        weights=torch.full_like(losses, weight),
        chosen=rewards[:, 0],
        rejected=rewards[:, 1],
    )


# case: metrics-13
def test_metrics_that_are_equal_in_the_first_batch_part_later() -> None:
    """Batch 1: all rewards 0 (policy = reference). Batch 2: chosen 3, rejected -1. torchmetrics would merge them.
    Means over 2 pairs: chosen 1.5, rejected -0.5, margin 2, accuracy (1/2 + 1) / 2. All nine names are there."""
    collection = preference_metrics("train/")
    count(collection, [0.0], [0.0])
    count(collection, [3.0], [-1.0])
    assert {name: value.item() for name, value in values(collection).items()} == {
        "train/loss": 0.5,
        "train/rewards/chosen": 1.5,
        "train/rewards/rejected": -0.5,
        "train/rewards/accuracies": 0.75,
        "train/rewards/margins": 2.0,
        "train/logps/chosen": 15.0,
        "train/logps/rejected": -5.0,
        "train/logits/chosen": 75.0,
        "train/logits/rejected": -25.0,
    }


# case: metrics-08
def test_accuracy_is_over_all_pairs_since_the_last_log() -> None:
    """Flags 1, 0 and 1, 1, and later 1 alone in its batch: 3/4, then 1/1."""
    collection = preference_metrics("train/")
    count(collection, [1.0, 0.0], [0.0, 1.0])
    count(collection, [1.0, 1.0], [0.0, 0.0])
    assert values(collection)["train/rewards/accuracies"].item() == 0.75
    count(collection, [2.0], [0.0])
    assert values(collection)["train/rewards/accuracies"].item() == 1.0


# case: dpo-loss-01
def test_a_tie_counts_half_and_the_margin_is_the_mean_difference() -> None:
    """Rewards 1 > 0, 0 = 0, 0 < 1: accuracy (1 + 1/2 + 0) / 3, margin (1 + 0 - 1) / 3."""
    chosen, rejected = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    for metric, expected in ((RewardAccuracy(), 0.5), (RewardMargin(), 0.0)):
        metric.update(chosen, rejected)
        assert metric.compute().item() == pytest.approx(expected)


def test_the_loss_is_the_weighted_mean_that_is_minimised() -> None:
    """Losses 0.5 and 2.0 with weights 3 and 1: 3.5 / 4; a pair of weight 0 changes nothing."""
    collection = preference_metrics("train/")
    loss = collection["loss"]
    loss.update(losses=torch.tensor([0.5, 2.0, 9.0]), weights=torch.tensor([3.0, 1.0, 0.0]))
    assert loss.compute().item() == 3.5 / 4


# case: metrics-10
def test_a_nan_reward_shows_in_its_means_only() -> None:
    """A NaN reward of a chosen response: its mean and the margin are NaN; rejected and the finite loss are not."""
    collection = preference_metrics("train/")
    count(collection, [1.0], [0.0])
    collection["rewards/chosen"].update(chosen=torch.tensor([torch.nan]), rejected=torch.tensor([0.0]))
    found = values(collection)
    assert found["train/rewards/chosen"].isnan()
    assert not found["train/rewards/rejected"].isnan()
    assert not found["train/loss"].isnan()
