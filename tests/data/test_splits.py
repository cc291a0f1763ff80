"""Which parts stand behind which split, and what they are called."""

from dataclasses import replace

import pytest

from smollit.data.sources.mixture import Part
from smollit.data.sources.splits import Splits, label

ONE, OTHER = Part("one"), Part("other", split="own[:5]", weight=2.0, max_rows=3, format="sharegpt")


def names(splits: Splits, name: str) -> dict[str, list[tuple[str, str | None]]]:
    return {key: [(part.dataset, part.split) for part in parts] for key, parts in splits.parts(name).items()}


def test_parts_take_the_train_split_unless_they_have_their_own() -> None:
    assert names(Splits([ONE, OTHER], "train", "test"), "train") == {"train": [("one", "train"), ("other", "own[:5]")]}


def test_a_parts_split_weight_and_cap_are_for_training() -> None:
    """Validation measures all rows of `val_split`, once each, whatever training takes."""
    splits = Splits([ONE, OTHER], "train", "held")
    assert names(splits, "val") == {"val": [("one", "held"), ("other", "held")]}
    assert [(part.weight, part.max_rows) for part in splits.parts("val")["val"]] == [(1.0, None)] * 2
    assert splits.weights() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["test", "predict"])
def test_test_and_predict_take_the_validation_split_unless_they_have_their_own(name: str) -> None:
    assert names(Splits([ONE], "train", "held"), name) == {name: [("one", "held")]}
    assert names(Splits([ONE], "train", "held", test="t", predict="p"), name) == {name: [("one", name[0])]}
    assert names(Splits([ONE], "train", None), name) == {}


def test_named_sets_stand_instead_of_the_validation_split() -> None:
    """Each has a key of its own; the data set's own `val_split` is not read."""
    splits = Splits([ONE], "train", "held", val_sets={"a": Part("two"), "b": replace(OTHER, weight=1.0)})
    assert names(splits, "val") == {"val/a": [("two", "held")], "val/b": [("other", "own[:5]")]}
    assert names(splits, "test") == {"test": [("one", "held")]}


@pytest.mark.parametrize(
    ("sets", "error"),
    [({"b": OTHER}, r"val_sets\.b` has a weight"), ({"v1.5": ONE}, r"the name 'v1\.5': take letters")],
)
def test_sets_with_a_weight_or_an_odd_name_are_refused(sets: dict[str, Part], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Splits([ONE], "train", "held", val_sets=sets)


def test_parts_inherit_format_and_columns_that_they_do_not_say() -> None:
    """`auto` and null are what is not said; {} says that nothing is renamed."""
    parts = [ONE, OTHER, Part("third", columns={})]
    (found,) = Splits(parts, "train", None, format="alpaca", columns={"output": "answer"}).parts("train").values()
    assert [part.format for part in found] == ["alpaca", "sharegpt", "alpaca"]
    assert [part.columns for part in found] == [{"output": "answer"}, {"output": "answer"}, {}]


def test_what_the_user_named_is_not_changed() -> None:
    Splits([ONE], "train", "held", format="text").parts("train")
    assert Part("one") == ONE


@pytest.mark.parametrize(
    ("key", "is_alone", "expected"),
    [("train", True, "train[:5%]"), ("val/math", True, "math"), ("train", False, "train[:5%] of rows")],
)
def test_labels(key: str, is_alone: bool, expected: str) -> None:
    """The split; a set's name; of one of several parts, the split and the data set."""
    assert label(key, Part("rows", split="train[:5%]"), is_alone) == expected
