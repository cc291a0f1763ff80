"""The order of rows: a pure function of (lengths, seed, epoch, rank, world size, position)."""

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollit.data.batching.position import Position
from smollit.data.batching.sampler import BatchSampler, Order, epoch_rows

Rows = list[list[int]]
some_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=40)
batch_sizes, worlds = st.integers(1, 5), st.integers(1, 4)
weights = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0]) | st.floats(0.01, 3.5)
limits = st.sampled_from([0, 12, 20, 40])  # of tokens per batch
orders = st.builds(
    Order,
    shuffle=st.booleans(),
    seed=st.integers(-3, 2**40),
    group_by_length=st.booleans(),
    longest_first=st.booleans(),
    pack_length=st.sampled_from([0, 12, 30]),
)


def sampler_of(
    lengths: list[int], size: int, order: Order, limit: int, rank: int, world: int, position: Position | None = None
) -> BatchSampler:
    return BatchSampler(
        lengths, size, order=order, max_batch_tokens=limit, rank=rank, world_size=world, position=position
    )


def rows_of(sampler: BatchSampler) -> Rows:
    return [row for batch in sampler for row in batch]


def on_all_ranks(lengths: list[int], size: int, order: Order, limit: int, world: int, at: Position) -> list[Rows]:
    """The batches of every rank, after one another: [ranks x batches] of rows; all ranks have equally many batches."""
    ranks = [list(sampler_of(lengths, size, order, limit, rank, world, at)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    return [batch for batches in ranks for batch in batches]


# case: data-08, data-13
@settings(deadline=None)
@given(some_lengths, batch_sizes, orders, limits, worlds, st.integers(0, 2))
def test_an_epoch_has_each_example_once_over_all_ranks(
    lengths: list[int], size: int, order: Order, limit: int, world: int, epoch: int
) -> None:
    """Whatever the order, packing and limit; every rank has len() batches, of at most `size` rows."""
    position = Position(epoch)
    batches = on_all_ranks(lengths, size, order, limit, world, position)
    assert sorted(example for batch in batches for row in batch for example in row) == list(range(len(lengths)))
    assert len(batches) == world * len(sampler_of(lengths, size, order, limit, 0, world, position))
    assert max(map(len, batches)) <= size


# case: data-08
def test_five_rows_on_two_ranks() -> None:
    """Global batches 0 1 2 3 | 4: rank 0 gets 0 2 | 4 and rank 1 gets 1 3 | nothing, in 2 steps each."""
    assert list(BatchSampler([1] * 5, 2, world_size=2, rank=0)) == [[[0], [2]], [[4]]]
    assert list(BatchSampler([1] * 5, 2, world_size=2, rank=1)) == [[[1], [3]], []]


@given(some_lengths, orders, st.integers(0, 2))
def test_ranks_see_the_rows_of_one_process_step_by_step(lengths: list[int], order: Order, epoch: int) -> None:
    """1 x 4 and 2 x 2: the same rows in the same optimizer step."""
    one = BatchSampler(lengths, 4, order=order, position=Position(epoch))
    two = zip(*(sampler_of(lengths, 2, order, 0, rank, 2, Position(epoch)) for rank in range(2)), strict=True)
    assert [sorted(batch) for batch in one] == [sorted(first + second) for first, second in two]


@given(some_lengths, orders, st.integers(0, 2))
def test_steps_of_a_number_of_rows_do_not_depend_on_the_devices(lengths: list[int], order: Order, epoch: int) -> None:
    """8 rows per step, on 1, 2 and 4 ranks with micro-batches of 1 or 2: the same rows in the same optimizer step, also
    where rows are grouped by length or the longest lead."""

    def steps(size: int, world: int) -> list[Rows]:
        ranks = [
            BatchSampler(
                lengths, size, order=order, rows_per_step=8, rank=rank, world_size=world, position=Position(epoch)
            )
            for rank in range(world)
        ]
        micro = [[row for batch in batches for row in batch] for batches in zip(*ranks, strict=True)]
        window = 8 // (size * world)
        return [sorted(row for rows in micro[at : at + window] for row in rows) for at in range(0, len(micro), window)]

    assert steps(2, 1) == steps(1, 4) == steps(2, 2) == steps(2, 4)


# ---- resume


# case: resume-01, resume-06
@settings(deadline=None)
@given(some_lengths, orders, st.data(), limits, limits)
def test_a_resumed_epoch_has_exactly_the_rows_that_remain(
    lengths: list[int], order: Order, data: st.DataObject, limit: int, new_limit: int
) -> None:
    """Any number of batches are done, on any number of ranks; then the rest with another batch size, number of ranks
    and limit: together each example once. `rows_after` says how many rows were done."""
    size, world, new_size, new_world = (data.draw(numbers) for numbers in (batch_sizes, worlds, batch_sizes, worlds))
    epoch = data.draw(st.integers(0, 2))
    first = [
        BatchSampler(
            lengths, size, order=order, max_batch_tokens=limit, rank=rank, world_size=world, position=Position(epoch)
        )
        for rank in range(world)
    ]
    done = data.draw(st.integers(0, len(first[0])))
    seen = [row for sampler in first for batch in list(sampler)[:done] for row in batch]
    position = Position(epoch, first[0].rows_after(done), first[0].global_batch_size)
    assert position.rows == len(seen)
    rest = [row for batch in on_all_ranks(lengths, new_size, order, new_limit, new_world, position) for row in batch]
    expected = epoch_rows(lengths, order, epoch, size * world)
    assert sorted(seen) == sorted(expected[: len(seen)])
    assert sorted(rest) == sorted(expected[len(seen) :])


@settings(deadline=None)
@given(some_lengths, batch_sizes, orders, limits, worlds, st.integers(0, 40))
def test_rows_after_counts_what_the_ranks_yield(
    lengths: list[int], size: int, order: Order, limit: int, world: int, start: int
) -> None:
    """From any row on, batch by batch; more batches than there are is the whole epoch."""
    num_rows = len(epoch_rows(lengths, order, 1, size * world))
    position = Position(1, min(start, num_rows))
    samplers = [sampler_of(lengths, size, order, limit, rank, world, position) for rank in range(world)]
    done = [position.rows]
    for batches in zip(*samplers, strict=True):
        done.append(done[-1] + sum(map(len, batches)))
    assert [samplers[0].rows_after(count) for count in range(len(done))] == done
    assert samplers[0].rows_after(len(done) + 5) == done[-1] == num_rows
    assert samplers[0].sizes(position.rows) == [after - before for before, after in pairwise(done)]


# ---- token limit, grouping, longest first, packing


@settings(deadline=None)
@given(some_lengths, batch_sizes, orders, st.sampled_from([5, 12, 20, 40]), worlds)
def test_no_batch_is_over_the_limit_unless_it_is_one_row(
    lengths: list[int], size: int, order: Order, limit: int, world: int
) -> None:
    """Rows x the longest row, padding included."""
    for batch in on_all_ranks(lengths, size, order, limit, world, Position()):
        longest = max((sum(lengths[example] for example in row) for row in batch), default=0)
        assert len(batch) <= 1 or longest * len(batch) <= limit


def test_batches_are_filled_up_to_the_limit() -> None:
    """Lengths 4 4 4 9 1 1 1 1 and 12 tokens: three of 4 positions; the 9 alone, since 2 x 9 > 12; then four of 1."""
    found = list(BatchSampler([4, 4, 4, 9, 1, 1, 1, 1], 5, max_batch_tokens=12))
    assert found == [[[0], [1], [2]], [[3]], [[4], [5], [6], [7]]]
    assert list(BatchSampler([4, 4, 4, 9, 1, 1, 1, 1], 2, max_batch_tokens=12))[0] == [[0], [1]]  # noqa: RUF015


def padding(lengths: list[int], batches: list[Rows]) -> int:
    """Positions that a rectangle of the batch's rows has more than its rows have tokens."""
    filled = [[sum(lengths[example] for example in row) for row in batch] for batch in batches]
    return sum(max(counts) * len(counts) - sum(counts) for counts in filled if counts)


def test_grouping_by_length_saves_padding_and_still_shuffles() -> None:
    """400 lengths from 1 to 100, batches of 8: less than a tenth of the padding, and the batches are not in order."""
    draw = random.Random(0)
    lengths = [draw.randint(1, 100) for _ in range(400)]
    plain = list(BatchSampler(lengths, 8, order=Order(shuffle=True)))
    grouped = list(BatchSampler(lengths, 8, order=Order(shuffle=True, group_by_length=True)))
    assert padding(lengths, grouped) < padding(lengths, plain) / 10
    longest = [max(lengths[example] for (example,) in batch) for batch in grouped]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


# case: perf-02
def test_the_longest_rows_come_first() -> None:
    """Lengths 3, 9, 4, with batches of 1 and of 2: the first batch holds the 9 and, of 2, the 4; what is left keeps the
    seed's order. In later epochs nothing moves."""
    for seed in range(5):
        order = Order(shuffle=True, seed=seed)
        usual = rows_of(BatchSampler([3, 9, 4], 1, order=order))
        first = replace(order, longest_first=True)
        assert rows_of(BatchSampler([3, 9, 4], 1, order=first)) == [[1], *(row for row in usual if row != [1])]
        assert list(BatchSampler([3, 9, 4], 2, order=first)) == [[[1], [2]], [[0]]]
        later = Position(epoch=1)
        assert rows_of(BatchSampler([3, 9, 4], 1, order=first, position=later)) == rows_of(
            BatchSampler([3, 9, 4], 1, order=order, position=later)
        )


# case: perf-02
@given(some_lengths, batch_sizes, worlds, orders)
def test_no_later_batch_is_longer_than_the_first(lengths: list[int], size: int, world: int, order: Order) -> None:
    """Every rank's first batch has the longest rows, also when they are packed: memory is at its peak at once."""
    order = replace(order, longest_first=True)
    sizes = [
        [sum(sum(lengths[example] for example in row) for row in batch) for batch in batches]
        for batches in zip(*(sampler_of(lengths, size, order, 0, r, world) for r in range(world)), strict=True)
    ]
    totals = [sum(counts) for counts in sizes]
    assert max(totals) == totals[0]


@given(some_lengths, st.integers(0, 5), st.integers(0, 3))
def test_packed_epochs_have_as_many_rows_and_other_neighbours(lengths: list[int], seed: int, epoch: int) -> None:
    """No row over 12 positions; the number of rows is the same in each epoch."""
    order = Order(shuffle=True, seed=seed, pack_length=12)
    rows = epoch_rows(lengths, order, epoch, 1)
    assert all(sum(lengths[example] for example in row) <= 12 for row in rows)
    assert len(rows) == len(epoch_rows(lengths, order, 0, 1))


def test_packing_has_other_neighbours_in_each_epoch() -> None:
    """40 examples of equal length, two in a row."""
    order = Order(shuffle=True, pack_length=2)
    pairs = [{frozenset(row) for row in epoch_rows([1] * 40, order, epoch, 1)} for epoch in range(2)]
    assert len(pairs[0] & pairs[1]) < 10


# ---- mixtures


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), weights), min_size=1, max_size=4),
    orders,
    st.integers(0, 3),
)
def test_parts_are_seen_as_often_as_their_weights_say(parts: list[tuple[int, float]], order: Order, epoch: int) -> None:
    """Weight 2: each row twice; 1.5: each once or twice, weight x rows in all (rounded); 0.5: each at most once."""
    lengths = [1] * sum(rows for rows, _ in parts)
    rows = epoch_rows(lengths, replace(order, parts=tuple(parts)), epoch, 2)
    seen, start = Counter(example for row in rows for example in row), 0
    for num_rows, weight in parts:
        counts = [seen[example] for example in range(start, start + num_rows)]
        assert abs(sum(counts) - weight * num_rows) <= (0.5 if weight * num_rows >= 1 else 1)
        assert set(counts) <= {math.floor(weight), math.ceil(weight)}
        start += num_rows
    assert set(seen) <= set(range(len(lengths)))


# ---- a pure function


@given(some_lengths, orders, st.integers(0, 3))
def test_the_order_is_a_function_of_seed_and_epoch(lengths: list[int], order: Order, epoch: int) -> None:
    """The global random state has no part in it, and is left alone."""
    torch.manual_seed(epoch)
    before = torch.get_rng_state()
    first = epoch_rows(lengths, order, epoch, 2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert epoch_rows(lengths, order, epoch, 2) == first


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [Order(shuffle=True, seed=seed) for seed in range(3)]
    found = {str(epoch_rows([1] * 20, order, epoch, 1)) for order in orders for epoch in range(3)}
    assert len(found) == 9
    assert epoch_rows([1] * 4, Order(), 1, 1) == [[0], [1], [2], [3]]
