"""Parts with weights and caps: how many of their rows an epoch has, and which."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smollit.data.sources.mixture import Part, Splits, epoch_members, label, load_part
from smollit.data.sources.readers import RAW


def numbers(path: Path, count: int = 20) -> str:
    path.write_text("".join(json.dumps({"n": number}) + "\n" for number in range(count)))
    return str(path)


def rows_of(part: Part, seed: int = 0) -> list[int]:
    return [json.loads(line)["n"] for line in load_part(part, seed=seed).rows[RAW]]


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


def test_a_streamed_cap_takes_the_first_rows(tmp_path: Path) -> None:
    source = load_part(Part(numbers(tmp_path / "a.jsonl"), max_rows=3), seed=0)
    assert [json.loads(row[RAW])["n"] for row in source.stream()] == [0, 1, 2]


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
        (Part(" "), "`dataset` is empty: give a hub id"),
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


def test_parts_take_the_train_split_unless_they_have_their_own() -> None:
    assert names(Splits([ONE, OTHER], train="train", val="test"), "train") == {
        "train": [("one", "train"), ("other", "own[:5]")]
    }


def test_a_parts_split_weight_and_cap_are_for_training() -> None:
    """Validation measures all rows of `val_split`, once each, whatever training uses."""
    splits = Splits([ONE, OTHER], train="train", val="held")
    assert names(splits, "val") == {"val": [("one", "held"), ("other", "held")]}
    assert [(part.weight, part.max_rows) for part in splits.parts("val")["val"]] == [(1.0, None)] * 2
    assert splits.weights() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["test", "predict"])
def test_test_and_predict_take_the_validation_split_unless_they_have_their_own(name: str) -> None:
    assert names(Splits([ONE], train="train", val="held"), name) == {name: [("one", "held")]}
    assert names(Splits([ONE], train="train", val="held", test="t", predict="p"), name) == {name: [("one", name[0])]}
    assert names(Splits([ONE], train="train", val=None), name) == {}


def test_named_sets_stand_instead_of_the_validation_split() -> None:
    """Each has a key of its own; the data set's own `val_split` is not read."""
    splits = Splits([ONE], train="train", val="held", val_sets={"a": Part("two"), "b": replace(OTHER, weight=1.0)})
    assert names(splits, "val") == {"val/a": [("two", "held")], "val/b": [("other", "own[:5]")]}
    assert names(splits, "test") == {"test": [("one", "held")]}


@pytest.mark.parametrize(
    ("sets", "error"),
    [({"b": OTHER}, r"val_sets\.b` has a weight"), ({"v1.5": ONE}, r"the name 'v1\.5': use letters")],
)
def test_sets_with_a_weight_or_an_odd_name_are_refused(sets: dict[str, Part], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Splits([ONE], train="train", val="held", val_sets=sets)


def test_parts_inherit_format_and_columns_that_they_do_not_say() -> None:
    """`auto` and null are what is not said; {} says that nothing is renamed."""
    parts = [ONE, OTHER, Part("third", columns={})]
    (found,) = (
        Splits(parts, train="train", val=None, format="alpaca", columns={"output": "answer"}).parts("train").values()
    )
    assert [part.format for part in found] == ["alpaca", "sharegpt", "alpaca"]
    assert [part.columns for part in found] == [{"output": "answer"}, {"output": "answer"}, {}]


def test_what_the_user_named_is_not_changed() -> None:
    Splits([ONE], train="train", val="held", format="text").parts("train")
    assert Part("one") == ONE


@pytest.mark.parametrize(
    ("key", "is_alone", "expected"),
    [("train", True, "train[:5%]"), ("val/math", True, "math"), ("train", False, "train[:5%] of rows")],
)
def test_labels(key: str, is_alone: bool, expected: str) -> None:
    """The split; a set's name; of one of several parts, the split and the data set."""
    assert label(key, Part("rows", split="train[:5%]"), is_alone) == expected


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


def test_whole_weights_repeat_and_parts_are_one_behind_the_other() -> None:
    """Part 0 is rows 0..2, part 1 is rows 3..4: twice all of it."""
    assert Counter(epoch_members([3, 2], [1, 2], seed=7, epoch=5)) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}


def test_a_quarter_is_seen_once_in_four_epochs() -> None:
    """8 rows at 0.25: 2 per epoch, and epochs 0 to 3 have each row exactly once; so have 4 to 7, in another order."""
    epochs = [epoch_members([8], [0.25], seed=1, epoch=epoch) for epoch in range(8)]
    assert all(len(rows) == 2 for rows in epochs)
    for turn in (epochs[:4], epochs[4:]):
        assert sorted(row for rows in turn for row in rows) == list(range(8))
    assert epochs[:4] != epochs[4:]


def test_rows_that_do_not_fit_a_turn_come_by_too() -> None:
    """5 rows at 0.4: 2 per epoch, so 2 epochs leave one row over, another one in each turn."""
    seen = Counter(row for epoch in range(60) for row in epoch_members([5], [0.4], seed=0, epoch=epoch))
    assert sum(seen.values()) == 120
    assert set(seen) == set(range(5)) and min(seen.values()) > 15  # 24 on average


def test_parts_of_one_size_are_not_drawn_alike() -> None:
    members = epoch_members([100, 100], [0.5, 0.5], seed=0, epoch=0)
    assert [row for row in members if row < 100] != [row - 100 for row in members if row >= 100]


@given(
    parts=st.lists(st.tuples(st.integers(0, 30), st.floats(0.01, 3.5)), min_size=1, max_size=4),
    seed=st.integers(-5, 2**40),
    epoch=st.integers(0, 50),
)
def test_each_row_comes_as_often_as_its_weight_says(parts: list[tuple[int, float]], seed: int, epoch: int) -> None:
    """floor(weight) times, or once more; in all weight x rows, rounded; pure, and global random state stays."""
    num_rows, weights = [rows for rows, _ in parts], [weight for _, weight in parts]
    before = torch.get_rng_state()
    members = epoch_members(num_rows, weights, seed=seed, epoch=epoch)
    assert torch.equal(before, torch.get_rng_state())
    assert members == epoch_members(num_rows, weights, seed=seed, epoch=epoch)
    seen, start = Counter(members), 0
    for rows, weight in zip(num_rows, weights, strict=True):
        counts = [seen[row] for row in range(start, start + rows)]
        assert all(math.floor(weight) <= count <= math.floor(weight) + 1 for count in counts)
        assert abs(sum(counts) - weight * rows) <= (0.5 if weight * rows >= 1 else 1)
        start += rows
    assert set(members) <= set(range(start))
