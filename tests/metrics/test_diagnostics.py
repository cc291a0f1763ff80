"""Diagnostics of pairs: each against a loop over the pairs, in one batch and as sums of two ranks."""

import pytest
import torch
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.metrics import MeanOfSums, add_collection, pair_diagnostics, preference_metrics, values
from smollit.metrics.diagnostics import RewardQuantile

P = 101


def made(seed: int = 0) -> tuple[Pairs, Tensor]:
    """Random pairs with score gaps from -2 to 4, some of them 0, and rewards of both responses, [P, 2]."""
    draw = torch.Generator().manual_seed(seed)
    policy, reference = (torch.randn(P, 2, generator=draw) * 10 for _ in range(2))
    tokens = torch.randint(1, 6, (P, 2), generator=draw).float()
    gaps = torch.randint(-4, 9, (P,), generator=draw) / 2
    return Pairs(policy, reference, tokens, tokens, gaps, entropies=2 * tokens**2), 0.1 * (policy - reference)


def by_hand(pairs: Pairs, rewards: Tensor) -> dict[str, float]:
    """Each diagnostic from plain lists."""
    right = (rewards[:, 0] > rewards[:, 1]).tolist()
    tokens, gaps = pairs.num_tokens.tolist(), pairs.score_gap.tolist() if pairs.score_gap is not None else []
    subsets = {
        "accuracies_chosen_longer": [chosen > rejected for chosen, rejected in tokens],
        "accuracies_chosen_shorter": [chosen < rejected for chosen, rejected in tokens],
        "accuracies_small_gap": [gap < 1 for gap in gaps],
        "accuracies_medium_gap": [1 <= gap < 2 for gap in gaps],
        "accuracies_large_gap": [gap >= 2 for gap in gaps],
    }
    found = {
        f"rewards/{name}": sum(r for r, is_in in zip(right, some, strict=True) if is_in) / sum(some)
        for name, some in subsets.items()
    }
    agree = [r == (gap > 0) for r, gap in zip(right, gaps, strict=True) if gap]
    found["rewards/score_agreement"] = sum(agree) / len(agree)
    for column, side in enumerate(("chosen", "rejected")):
        ratios = [p[column] - r[column] for p, r in zip(pairs.policy.tolist(), pairs.reference.tolist(), strict=True)]
        found[f"kl_estimate/{side}"] = sum(ratios) / sum(pair[column] for pair in tokens)
        found[f"entropy/{side}"] = sum(2 * pair[column] ** 2 for pair in tokens) / sum(pair[column] for pair in tokens)
        ordered = sorted(rewards[:, column].tolist())
        found |= {f"rewards/{side}_p{percent}": ordered[-(-percent * P // 100) - 1] for percent in (10, 50, 90)}
    return found


def add(collection: object, pairs: Pairs, rewards: Tensor, some: slice) -> None:
    part = Pairs(*(None if value is None else value[some] for value in pairs))  # type: ignore[arg-type]
    chosen, rejected = rewards[some].unbind(dim=1)
    ones = torch.ones_like(chosen)
    collection.update(pairs=part, losses=ones, weights=ones, chosen=chosen, rejected=rejected)  # type: ignore[operator]


# promise: diagnostics
def test_diagnostics_are_those_of_loops_over_the_pairs() -> None:
    """Added up from 60 and 41 pairs; quantiles lie within half of a bin, 0.5 %. A reward that is not a number shows."""
    pairs, rewards = made()
    total, other = (preference_metrics("val/", pair_diagnostics()) for _ in range(2))
    add(total, pairs, rewards, slice(0, 60))
    add(other, pairs, rewards, slice(60, P))
    add_collection(total, other)
    found = {name.removeprefix("val/"): value.item() for name, value in values(total).items()}
    for name, expected in by_hand(pairs, rewards).items():
        assert found[name] == pytest.approx(expected, rel=6e-3 if "_p" in name else 1e-5), name
    rewards[3] = torch.nan
    add(total, pairs, rewards, slice(0, P))
    assert values(total)["val/rewards/chosen_p50"].isnan()


@pytest.mark.parametrize(("count", "percent", "expected"), [(10, 90, 9), (20, 50, 10), (1000, 10, 100), (7, 50, 4)])
def test_a_quantile_is_the_reward_of_its_row(count: int, percent: int, expected: float) -> None:
    """Of 1, 2, ..., n: the smallest that at least this share of them does not exceed."""
    metric, rewards = RewardQuantile("chosen", percent), torch.arange(1.0, count + 1)
    metric.update(chosen=rewards, rejected=-rewards)
    assert metric.compute().item() == pytest.approx(expected, rel=6e-3)


def test_pairs_without_scores_and_ties() -> None:
    """Without scores, nothing is said about them. Policy equal to reference: accuracies 1/2, the rest 0."""
    pairs, rewards = made()
    collection = preference_metrics("val/", pair_diagnostics())
    equal = pairs._replace(score_gap=None, reference=pairs.policy, entropies=torch.zeros_like(rewards))
    add(collection, equal, torch.zeros_like(rewards), slice(0, P))
    found = {name: value.item() for name, value in values(collection).items() if name.removeprefix("val/") in NAMES}
    assert not any("gap" in name or "agreement" in name for name in found)
    assert set(found.values()) == {0.0, 0.5}


NAMES: dict[str, MeanOfSums] = pair_diagnostics()
