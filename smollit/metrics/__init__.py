"""Metrics as sums and counts: the same figure for any batch size, accumulation and number of devices."""

from smollit.metrics.base import Mean, RunningMean, WeightedMean, add_counts, add_sums, sums, values
from smollit.metrics.language import Perplexity, TokenAccuracy, TokenLoss, language_metrics
from smollit.metrics.preference import RewardAccuracy, RewardMargin, preference_metrics

__all__ = [
    "Mean",
    "Perplexity",
    "RewardAccuracy",
    "RewardMargin",
    "RunningMean",
    "TokenAccuracy",
    "TokenLoss",
    "WeightedMean",
    "add_counts",
    "add_sums",
    "language_metrics",
    "preference_metrics",
    "sums",
    "values",
]
