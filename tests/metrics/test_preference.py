"""Preference metrics: names, ties, and metrics that look equal in the first batch."""

import pytest
import torch
from torchmetrics import MetricCollection

from smollit.metrics import RewardAccuracy, RewardMargin, preference_metrics, values

NAMES = {
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
}


def count(collection: MetricCollection, chosen: list[float], rejected: list[float]) -> None:
    """One batch of rewards; log-probabilities are 10 times them, logit sums of 2 tokens 100 times."""
    for name, rewards in (("chosen", torch.tensor(chosen)), ("rejected", torch.tensor(rejected))):
        collection[f"rewards/{name}"].update(rewards)
        collection[f"logps/{name}"].update(10 * rewards)
        collection[f"logits/{name}"].update(100 * rewards, torch.full_like(rewards, 2))
    collection["loss"].update(torch.tensor(chosen) * 0 + 0.5)
    for name in ("rewards/accuracies", "rewards/margins"):
        collection[name].update(torch.tensor(chosen), torch.tensor(rejected))


def test_metrics_that_are_equal_in_the_first_batch_part_later() -> None:
    """Batch 1: all rewards 0 (policy = reference). Batch 2: chosen 3, rejected -1. torchmetrics would merge them.
    Means over 2 pairs: chosen 1.5, rejected -0.5, margin 2, accuracy (1/2 + 1) / 2."""
    collection = preference_metrics("train/")
    count(collection, [0.0], [0.0])
    count(collection, [3.0], [-1.0])
    found = {name: value.item() for name, value in values(collection).items()}
    assert found == {
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


# case: metrics-13
def test_all_names_are_there_from_the_first_batch() -> None:
    """The nine names of the dashboard, whatever the batch holds."""
    collection = preference_metrics("val/")
    count(collection, [0.0], [0.0])
    assert set(values(collection)) == {f"val/{name}" for name in NAMES}


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
def test_a_tie_counts_half() -> None:
    """Rewards 1 > 0, 0 = 0, 0 < 1: (1 + 1/2 + 0) / 3."""
    metric = RewardAccuracy()
    metric.update(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    assert metric.compute().item() == pytest.approx(0.5)


def test_margin_is_the_mean_difference() -> None:
    """(3 - 1) and (0 - 4): -1."""
    metric = RewardMargin()
    metric.update(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 4.0]))
    assert metric.compute().item() == -1.0


# case: metrics-10
def test_a_nan_reward_shows_in_its_means_only() -> None:
    """A NaN reward: chosen and margin are NaN; rejected and the finite loss are not."""
    collection = preference_metrics("train/")
    count(collection, [1.0], [0.0])
    collection["rewards/chosen"].update(torch.tensor([torch.nan]))
    found = values(collection)
    assert found["train/rewards/chosen"].isnan()
    assert not found["train/rewards/rejected"].isnan()
