"""Scores of tokens -> sums per answer of each pair."""

from torch import Tensor

from smollit.batch import CHOSEN
from smollit.functional.logps import sum_per_sequence
from smollit.models.causal_lm import TokenScores


def per_answer(values_M: Tensor, scores: TokenScores, num_pairs: int) -> Tensor:
    """Sums over each answer's tokens, chosen then rejected: [M] -> [N, 2]."""
    sequence_M = 2 * scores.document + (scores.branch - CHOSEN)
    return sum_per_sequence(values_M, sequence_M, 2 * num_pairs).view(num_pairs, 2)
