"""The order of rows: a pure function of (number of rows, seed, epoch, rank, world size)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smollit.data.sampler import BatchSampler, Position, epoch_order

sizes = st.integers(1, 40)


def rows(sampler: BatchSampler) -> list[int]:
    return [index for batch in sampler for index in batch]


# case: data-13
@given(num_examples=sizes, batch_size=st.integers(1, 7), shuffle=st.booleans(), seed=st.integers(-3, 2**40))
def test_an_epoch_has_each_row_once(num_examples: int, batch_size: int, shuffle: bool, seed: int) -> None:
    sampler = BatchSampler(num_examples, batch_size, shuffle, seed)
    assert sorted(rows(sampler)) == list(range(num_examples))
    assert len(list(sampler)) == len(sampler)


# case: data-08
@given(num_examples=sizes, batch_size=st.integers(1, 5), world=st.integers(1, 4))
def test_ranks_share_the_rows_and_take_equally_many_steps(num_examples: int, batch_size: int, world: int) -> None:
    """The union over ranks is each row once, and every rank has ceil(rows / (batch * world)) batches."""
    samplers = [BatchSampler(num_examples, batch_size, True, 3, rank, world) for rank in range(world)]
    assert sorted(row for sampler in samplers for row in rows(sampler)) == list(range(num_examples))
    assert {len(list(sampler)) for sampler in samplers} == {-(-num_examples // (batch_size * world))}


# case: data-08
def test_five_rows_on_two_ranks() -> None:
    """Global batches 0 1 2 3 | 4: rank 0 gets 0 2 | 4 and rank 1 gets 1 3 | nothing, in 2 steps each."""
    assert list(BatchSampler(5, 2, world_size=2, rank=0)) == [[0, 2], [4]]
    assert list(BatchSampler(5, 2, world_size=2, rank=1)) == [[1, 3], []]


def test_ranks_see_the_rows_of_one_process_step_by_step() -> None:
    """1 x 4 and 2 x 2: the same rows in the same optimizer step."""
    one = list(BatchSampler(10, 4, True, 5))
    two = zip(*(BatchSampler(10, 2, True, 5, rank, 2) for rank in range(2)), strict=True)
    assert [sorted(batch) for batch in one] == [sorted(first + second) for first, second in two]


@given(num_examples=sizes, done=sizes, batch_size=st.integers(1, 5), world=st.integers(1, 3))
def test_a_resumed_epoch_has_exactly_the_rows_that_remain(
    num_examples: int, done: int, batch_size: int, world: int
) -> None:
    """Also with another batch size and number of ranks than the rows before were done with."""
    order = epoch_order(num_examples, 1, 2, shuffle=True)
    position = Position(epoch=2, rows=done)
    samplers = [BatchSampler(num_examples, batch_size, True, 1, rank, world, position) for rank in range(world)]
    assert sorted(row for sampler in samplers for row in rows(sampler)) == sorted(order[done:])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(20, seed, epoch, True)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert epoch_order(20, 1, 1, True) == epoch_order(20, 1, 1, True)
    assert epoch_order(4, 1, 1, False) == [0, 1, 2, 3]


def test_the_position_is_read_when_an_epoch_begins() -> None:
    position = Position()
    sampler = BatchSampler(6, 2, True, 0, position=position)
    first = rows(sampler)
    position.epoch, position.rows = 1, 0
    assert rows(sampler) != first


@pytest.mark.parametrize("seed", [0, 7])
def test_the_global_random_state_has_no_part(seed: int) -> None:
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    order = rows(BatchSampler(30, 4, True, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert order == epoch_order(30, 1, 0, True)
