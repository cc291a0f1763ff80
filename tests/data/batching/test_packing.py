"""Packing: whole examples, each once, in rows that are not too long and not too many."""

import logging
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollit.data import UltraChatDataModule
from smollit.data.batching.packing import fill_rate, pack

CAPACITY = 12
some_lengths = st.lists(st.integers(1, CAPACITY), max_size=60)


def fewest_rows(lengths: list[int], capacity: int) -> int:
    """By trying every way of putting each example into an open row or a new one."""
    best = len(lengths)

    def place(index: int, rooms: list[int]) -> None:
        nonlocal best
        if len(rooms) >= best:
            return
        if index == len(lengths):
            best = len(rooms)
            return
        for row in range(len(rooms)):
            if rooms[row] >= lengths[index]:
                place(index + 1, [*rooms[:row], rooms[row] - lengths[index], *rooms[row + 1 :]])
        place(index + 1, [*rooms, capacity - lengths[index]])

    place(0, [])
    return best


# promise: packing
# case: packing-02
@given(some_lengths)
def test_every_example_is_in_one_row_and_no_row_is_too_long(lengths: list[int]) -> None:
    """Nothing is split, dropped or doubled; no row is empty."""
    rows = pack(lengths, range(len(lengths)), CAPACITY)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[example] for example in row) <= CAPACITY for row in rows)


# case: packing-02
@given(st.lists(st.integers(1, CAPACITY), max_size=8))
@settings(deadline=None)
def test_rows_are_at_most_eleven_ninths_of_the_fewest_and_one(lengths: list[int]) -> None:
    """The fewest by trying all ways."""
    fewest = fewest_rows(lengths, CAPACITY)
    assert fewest <= len(pack(lengths, range(len(lengths)), CAPACITY)) <= 11 / 9 * fewest + 1


@given(some_lengths)
def test_at_most_one_row_is_half_empty(lengths: list[int]) -> None:
    """Two rows that are at most half full would have been one; so there are fewer than 2 * tokens / capacity + 1."""
    rows = pack(lengths, range(len(lengths)), CAPACITY)
    filled = [sum(lengths[example] for example in row) for row in rows]
    assert sum(count <= CAPACITY / 2 for count in filled) <= 1
    assert math.ceil(sum(lengths) / CAPACITY) <= len(rows)


def test_a_thousand_chats_fill_their_rows() -> None:
    """Lengths drawn from 1 to 1,000 and rows of 2,048: above 99 %."""
    draw = random.Random(0)
    lengths = [draw.randint(1, 1000) for _ in range(1000)]
    assert fill_rate(lengths, pack(lengths, range(1000), 2048), 2048) > 0.99


def test_equal_lengths_keep_the_order_that_they_come_in() -> None:
    """Rows of two out of 3, 1, 0, 2; then out of 0, 1, 2, 3."""
    assert pack([5] * 4, [3, 1, 0, 2], 10) == [[3, 1], [0, 2]]
    assert pack([5] * 4, range(4), 10) == [[0, 1], [2, 3]]


def test_the_fullest_row_that_has_room_is_taken() -> None:
    """7 and 6 open two rows of 10 with room for 3 and 4; the 3 goes to the first, the 4 before it to the second."""
    assert pack([3, 6, 4, 7], range(4), 10) == [[3, 0], [1, 2]]


def test_an_example_may_come_twice() -> None:
    """Weight 2 in a mixture: two copies, in one row or in two."""
    assert sorted(example for row in pack([3, 4], [0, 1, 0, 1], 7) for example in row) == [0, 0, 1, 1]


# case: packing-02, packing-05
def test_lengths_four_two_one_in_rows_of_four() -> None:
    """Row 5 was truncated to 4 before: [4] and [2, 1], 7 of 8 positions filled."""
    rows = pack([4, 2, 1], range(3), 4)
    assert rows == [[0], [1, 2]]
    assert fill_rate([4, 2, 1], rows, 4) == 7 / 8
    assert fill_rate([], [], 4) == 0.0


# case: packing-02
def test_an_example_longer_than_a_row_is_refused() -> None:
    """The user decides whether it is truncated or dropped, not the packer."""
    with pytest.raises(ValueError, match=r"`data.pack_length` is 4, and example 1 has 5 positions"):
        pack([4, 5], range(2), 4)


# ---- logs


# case: packing-05
@pytest.mark.parametrize(("packing", "says"), [("on", "on"), ("auto", "off (auto), since this machine has no GPU")])
def test_the_log_says_whether_rows_are_packed_and_how_full_they_are(
    tiny_model: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture, packing: str, says: str
) -> None:
    """Of 12 sample chats in rows of 128: number of chats and rows, and tokens / positions, counted from the batches."""
    if torch.cuda.is_available() and packing == "auto":
        pytest.skip("auto packs on a GPU")
    samples = Path(__file__).parents[3] / "smollit" / "data" / "samples" / "ultrachat"
    data = UltraChatDataModule(
        str(samples),
        train_split="train_sft[:12]",
        val_split=None,
        tokenizer_name=str(tiny_model),
        max_length=96,
        pack_length=128,
        packing=packing,
        cache_dir=str(cache_dir),
    )
    data.prepare_data()
    data.setup("fit")
    with caplog.at_level(logging.INFO):
        batches = list(data.train_dataloader())
    rows = [row for batch in batches for row in batch.layout]
    if packing == "on":
        tokens, chats = sum(batch.num_tokens for batch in batches), sum(batch.num_examples for batch in batches)
        assert chats > len(rows)
        says = (
            f"on, {chats} examples in {len(rows)} sequences of 128 positions, fill rate {tokens / 128 / len(rows):.1%}"
        )
    assert [record.getMessage() for record in caplog.records if says in record.getMessage()] != []
