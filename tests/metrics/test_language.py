"""Token metrics: every loss token counts once."""

import math

import pytest
import torch

from smollit.metrics import language_metrics, values

LOGPS = [-2.0] + [-0.5] * 9  # a document of 1 token and one of 9


# case: metrics-03
@pytest.mark.parametrize("split", [[10], [1, 9], [1, 4, 5], [3, 3, 4]])
def test_loss_does_not_depend_on_how_tokens_came_in_batches(split: list[int]) -> None:
    """(2.0 + 9 x 0.5) / 10 = 0.65, not the mean of 2.0 and 0.5; perplexity e^0.65."""
    collection = language_metrics("val/")
    for logps in torch.tensor(LOGPS).split(split):
        collection.update(logps=logps, correct=logps > -1)
    found = values(collection)
    assert found["val/loss"].item() == pytest.approx(0.65, abs=1e-7)
    assert found["val/perplexity"].item() == pytest.approx(math.exp(0.65), rel=1e-6)
    assert found["val/token_accuracy"].item() == pytest.approx(0.9)


def test_perplexity_is_not_a_mean_of_perplexities() -> None:
    """Log-probabilities -1 and -3 in two batches: e^2 = 7.39, not (e^1 + e^3) / 2 = 11.4."""
    collection = language_metrics("val/")
    for logp in (-1.0, -3.0):
        collection.update(logps=torch.tensor([logp]), correct=torch.tensor([False]))
    assert values(collection)["val/perplexity"].item() == pytest.approx(math.exp(2), rel=1e-6)
