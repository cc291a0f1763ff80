"""Parts with weights and caps: how many of their rows an epoch has, and which."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from smollit.data.sources.mixture import Part, Splits, epoch_members, load_part
from smollit.data.sources.readers import RAW


def numbers(path: Path, count: int = 20) -> str:
    path.write_text("".join(json.dumps({"n": number}) + "\n" for number in range(count)))
    return str(path)


def rows_of(part: Part, seed: int = 0) -> list[int]:
    return [json.loads(line)["n"] for line in load_part(part, seed=seed).rows[RAW]]


# ---- filters


@pytest.mark.parametrize("streaming", [False, True])
def test_each_part_has_the_columns_of_the_rows_that_it_keeps(tmp_path: Path, streaming: bool) -> None:
    """One file with rows of two shapes, the second one after the rows by which formats are detected."""
    rows = [{"kind": "pair", "prompt": "q"}] * 150 + [{"kind": "chat", "messages": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [Part(str(tmp_path / "a.jsonl"), where=f"kind == '{kind}'") for kind in ("pair", "chat", "none")]
    found = [load_part(part, seed=0, streaming=streaming).columns() for part in parts]
    assert found == [["kind", "prompt"], ["kind", "messages"], ["kind", "prompt"]]


# ---- caps


def test_a_cap_draws_rows_by_seed_and_keeps_their_order(tmp_path: Path) -> None:
    """5 of 20 rows: ascending, others for another seed, the same for the same; not simply the first ones."""
    part = Part(numbers(tmp_path / "a.jsonl"), max_rows=5)
    drawn = {seed: rows_of(part, seed) for seed in range(5)}
    assert all(rows == sorted(set(rows)) and len(rows) == 5 for rows in drawn.values())
    assert len(set(map(tuple, drawn.values()))) == 5
    assert rows_of(part, 3) == drawn[3]


def test_a_cap_is_taken_of_the_slice_and_may_be_larger_than_it(tmp_path: Path) -> None:
    path = numbers(tmp_path / "a.jsonl")
    assert set(rows_of(Part(path, split="train[15:]", max_rows=3))) < set(range(15, 20))
    assert rows_of(Part(path, split="train[15:]", max_rows=5)) == rows_of(Part(path, split="train[15:]", max_rows=99))


# case: data-01
def test_caps_and_their_seeds_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = numbers(tmp_path / "a.jsonl")
    variants = [(None, 0), (None, 1), (5, 0), (5, 1), (6, 0), (5, 0)]
    keys = [load_part(Part(path, max_rows=most), seed=seed).fingerprint for most, seed in variants]
    assert keys[0] == keys[1] and keys[2] == keys[5]  # without a cap, the seed changes nothing
    assert len(set(keys)) == 4


def test_the_default_split_is_for_parts_that_name_none(tmp_path: Path) -> None:
    for name, count in (("train", 2), ("other", 3)):
        numbers(tmp_path / f"{name}.jsonl", count)
    assert len(rows_of(Part(str(tmp_path)))) == 2
    assert len(rows_of(Part(str(tmp_path), split="other"))) == 3


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(" "), "`dataset` is empty: give a Hub id"),
        (Part("x", weight=0), "`weight` of x must be a number above 0 .*got 0"),
        (Part("x", weight=-1.0), "above 0"),
        (Part("x", weight=math.inf), "above 0 .*got inf"),
        (Part("x", weight=math.nan), "above 0 .*got nan"),
        (Part("x", max_rows=0), "`max_rows` of x must be at least 1, or null for all rows, got 0"),
    ],
)
def test_numbers_without_meaning_are_refused(part: Part, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_part(part, seed=0)


# ---- which parts are which split

ONE, OTHER = Part("one"), Part("other", split="own[:5]", weight=2.0, max_rows=3, format="sharegpt")


def names(splits: Splits, name: str) -> dict[str, list[tuple[str, str | None]]]:
    return {key: [(part.dataset, part.split) for part in parts] for key, parts in splits.parts(name).items()}


@pytest.mark.parametrize("name", ["test", "predict"])
def test_test_and_predict_take_the_validation_split_unless_they_have_their_own(name: str) -> None:
    assert names(Splits([ONE], train="train", val="held"), name) == {name: [("one", "held")]}
    assert names(Splits([ONE], train="train", val="held", test="t", predict="p"), name) == {name: [("one", name[0])]}
    assert names(Splits([ONE], train="train", val=None), name) == {}


def test_named_sets_stand_instead_of_the_validation_split() -> None:
    """Each has its own key; the data set's own `val_split` is not read."""
    splits = Splits([ONE], train="train", val="held", val_sets={"a": Part("two"), "b": replace(OTHER, weight=1.0)})
    assert names(splits, "val") == {"val/a": [("two", "held")], "val/b": [("other", "own[:5]")]}
    assert names(splits, "test") == {"test": [("one", "held")]}


@pytest.mark.parametrize(
    ("sets", "error"), [({"b": OTHER}, r"val_sets\.b` has a weight"), ({"v1.5": ONE}, r"the name 'v1\.5': use letters")]
)
def test_sets_with_a_weight_or_an_odd_name_are_refused(sets: dict[str, Part], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Splits([ONE], train="train", val="held", val_sets=sets)


def test_parts_inherit_format_and_columns_that_they_do_not_say() -> None:
    """`auto` and null are defaults; {} means that nothing is renamed."""
    parts = [ONE, OTHER, Part("third", columns={})]
    (found,) = (
        Splits(parts, train="train", val=None, format="alpaca", columns={"output": "answer"}).parts("train").values()
    )
    assert [part.format for part in found] == ["alpaca", "sharegpt", "alpaca"]
    assert [part.columns for part in found] == [{"output": "answer"}, {"output": "answer"}, {}]


# ---- what an epoch has


def test_weights_of_one_are_all_rows_once() -> None:
    """2 + 3 rows are 0..4, in every epoch."""
    for epoch in range(3):
        assert epoch_members([2, 3], [1.0, 1.0], seed=0, epoch=epoch) == [0, 1, 2, 3, 4]


def test_sizes_are_weight_times_rows() -> None:
    """10 * 2.5 = 25; 8 * 0.25 = 2; 1 * 0.2 rounds to 0, and is 1; 0 rows stay none."""
    members = epoch_members([10, 8, 1, 0], [2.5, 0.25, 0.2, 0.5], seed=0, epoch=0)
    assert [sum(start <= row < end for row in members) for start, end in ((0, 10), (10, 18), (18, 19))] == [25, 2, 1]
    assert len(members) == 28


def test_rows_that_do_not_fit_a_turn_come_by_too() -> None:
    """5 rows at 0.4: 2 per epoch, so 2 epochs leave one row over, another one in each turn."""
    seen = Counter(row for epoch in range(60) for row in epoch_members([5], [0.4], seed=0, epoch=epoch))
    assert sum(seen.values()) == 120
    assert set(seen) == set(range(5)) and min(seen.values()) > 15  # 24 on average


def test_parts_of_one_size_are_not_drawn_alike() -> None:
    members = epoch_members([100, 100], [0.5, 0.5], seed=0, epoch=0)
    assert [row for row in members if row < 100] != [row - 100 for row in members if row >= 100]
