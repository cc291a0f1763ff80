"""Metrics as sums and counts: the same value for any batch size, accumulation and number of devices."""

from smollit.metrics.base import MeanOfSums, add_collection, add_sums, sums, values
from smollit.metrics.diagnostics import RewardQuantile, pair_diagnostics
from smollit.metrics.language import Perplexity, TokenAccuracy, TokenLoss, language_metrics
from smollit.metrics.preference import PairLoss, RewardAccuracy, RewardMargin, preference_metrics

__all__ = [
    "MeanOfSums",
    "PairLoss",
    "Perplexity",
    "RewardAccuracy",
    "RewardMargin",
    "RewardQuantile",
    "TokenAccuracy",
    "TokenLoss",
    "add_collection",
    "add_sums",
    "language_metrics",
    "pair_diagnostics",
    "preference_metrics",
    "sums",
    "values",
]
