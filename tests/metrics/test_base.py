"""MeanOfSums: sums and counts that keep their digits, show a NaN, and leave out what was never counted."""

import gc
import math

import pytest
import torch
from torch import Tensor, nn

from smollit.metrics import MeanOfSums, add_collection, add_sums, language_metrics, preference_metrics, sums, values


class Mean(MeanOfSums):
    """Mean of all values, as a metric of the user's own computes it."""

    def update(self, found: Tensor) -> None:
        self.add_values(found)


# case: metrics-10
def test_nan_is_visible() -> None:
    """1, NaN, 3 must not read 2.0: the mean is NaN."""
    metric = Mean()
    for value in (1.0, math.nan, 3.0):
        metric.update(torch.tensor([value]))
    assert metric.compute().isnan()


# case: metrics-10
def test_weights_count() -> None:
    """Sums 1 x 1 and 3 x 3 over weights 1 and 3: (1 + 9) / (1 + 3) = 2.5."""
    metric = Mean()
    metric.add(torch.tensor(1.0), 1)
    metric.add(torch.tensor(9.0), torch.tensor(3))
    assert metric.compute().item() == 2.5


# case: metrics-10
@pytest.mark.filterwarnings("error")
def test_what_was_never_counted_has_no_key() -> None:
    """No updates -> no keys, and no warning; an update of 0 tokens counts nothing either."""
    collection = language_metrics("val/")
    assert values(collection) == {}
    collection.update(logps=torch.zeros(0), correct=torch.zeros(0, dtype=torch.bool))
    assert values(collection) == {}
    collection.update(logps=torch.tensor([-2.0]), correct=torch.tensor([True]))
    assert set(values(collection)) == {"val/loss", "val/perplexity", "val/token_accuracy"}


def test_values_start_afresh() -> None:
    """-2 then -4: 2 and then 4, not 3; afterwards nothing."""
    collection = language_metrics("train/")
    for logp in (-2.0, -4.0):
        collection.update(logps=torch.tensor([logp]), correct=torch.tensor([False]))
        assert values(collection)["train/loss"].item() == -logp
    assert values(collection) == {}


def test_sums_of_one_collection_are_added_to_another() -> None:
    """-log p of 2 and 1, kept as [3, 2]; then 6 more: (3 + 6) / 3 = 3. A name that is not kept starts at 0. The sums
    of named sets make up those of all: (3 + 9) / (2 + 3)."""
    before, after = language_metrics("train/"), language_metrics("train/")
    before.update(logps=torch.tensor([-2.0, -1.0]), correct=torch.tensor([True, False]))
    kept = {name: pair.tolist() for name, pair in sums(before).items()}
    assert kept["train/loss"] == [3.0, 2.0]
    assert kept.pop("train/token_accuracy") == [1.0, 2.0]
    add_sums(after, kept)
    after.update(logps=torch.tensor([-6.0]), correct=torch.tensor([True]))
    total = language_metrics("val/")
    for part in (before, after):
        add_collection(total, part)
    found = values(after)
    assert (found["train/loss"], found["train/token_accuracy"]) == (3.0, 1.0)
    assert values(total)["val/loss"].item() == pytest.approx(12 / 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_counts_keep_their_digits_when_the_module_is_cast(dtype: torch.dtype) -> None:
    """Lightning's `bf16-true` casts the module; 256 + 1 in bf16 is 256. After 1,000 tokens of 1.0 and one of 2.0 the
    mean is 1002 / 1001. A move to another device, here meta, is followed in fp64."""
    for cast in (lambda module: module.to(dtype), lambda module: module.to(dtype=dtype), lambda m: m.type(dtype)):
        holder = nn.ModuleDict({"train/": nn.ModuleDict({"mean": Mean()}), "all": preference_metrics("x/")})
        cast(holder)
        metric = holder["train/"]["mean"]  # type: ignore[index]
        metric.set_dtype(dtype)
        for value in [1.0] * 1000 + [2.0]:
            metric.update(torch.tensor([value], dtype=dtype))
        assert metric.compute().item() == pytest.approx(1002 / 1001, abs=1e-12)
        metric.reset()
        assert metric.total.dtype == torch.float64
        moved = metric.to("meta")
        assert (moved.total.device.type, moved.total.dtype) == ("meta", torch.float64)


# case: metrics-09
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    """10 and 100 batches leave the same number of tensor elements alive."""

    def alive_after(num_batches: int) -> int:
        collection = language_metrics("val/")
        for _ in range(num_batches):
            correct = torch.ones(64, dtype=torch.bool)
            collection.update(logps=torch.randn(64, requires_grad=True), correct=correct)
        gc.collect()
        return sum(thing.numel() for thing in gc.get_objects() if isinstance(thing, torch.Tensor))

    alive_after(1)
    assert alive_after(10) == alive_after(100)
