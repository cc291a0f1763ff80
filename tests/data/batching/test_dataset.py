"""Examples: rows of several data sets as one, fetched by the rows of a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from smollit.data.batching.collate import collate_chats
from smollit.data.batching.dataset import Examples
from smollit.data.batching.sampler import BatchSampler, Order


def part(*rows: int, start: int = 0) -> Dataset:
    """Chats of 2, 3, 4 ... tokens, all different, that stood in these rows of their data set."""
    ids = [list(range(start + 10 * i, start + 10 * i + i + 2)) for i in range(len(rows))]
    spans = [[1, len(tokens)] for tokens in ids]
    lengths = [len(tokens) for tokens in ids]
    return Dataset.from_dict({"input_ids": ids, "spans": spans, "length": lengths, "row": list(rows)})


@pytest.fixture
def examples() -> Examples:
    """3 of 5 rows, and 2 of 4: the second part's rows are numbers 5 to 8."""
    return Examples([part(0, 2, 4), part(1, 3, start=100)], [5, 4], ["a", "b"])


def test_row_numbers_run_on_from_part_to_part(examples: Examples) -> None:
    """Bad rows leave gaps: 0, 2 and 4 of 5, then 5 + 1 and 5 + 3."""
    assert [example["row"] for (example,) in examples.__getitems__([[i] for i in range(5)])] == [0, 2, 4, 6, 8]
    assert examples.parts_sizes() == [("a", 3), ("b", 2)]
    assert examples.first_examples.tolist() == [0, 3]
    assert len(examples) == 5


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=5))
@pytest.mark.slow
def test_row_numbers_are_those_of_all_rows_before_any_was_dropped(sizes: list[tuple[int, int]]) -> None:
    """(kept, dropped) rows of each part, also none: numbers counted by hand."""
    if not any(kept for kept, _ in sizes):
        return
    parts = [part(*range(dropped, kept + dropped)) for kept, dropped in sizes]
    found = Examples(parts, [kept + dropped for kept, dropped in sizes], [str(i) for i in range(len(sizes))])
    expected, total = [], 0
    for kept, dropped in sizes:
        expected += [total + dropped + index for index in range(kept)]
        total += kept + dropped
    assert [found[index]["row"] for index in range(len(found))] == expected


def test_lengths_are_positions(examples: Examples) -> None:
    """2, 3, 4 and 2, 3 tokens have 1, 2, 3 and 1, 2 positions with a next token; as the batches have them."""
    assert examples.lengths == [1, 2, 3, 1, 2]
    assert collate_chats([examples.__getitems__([[4]])[0]]).num_tokens == 2


def test_a_row_of_a_batch_may_hold_several_examples_or_none(examples: Examples) -> None:
    """Asked for as [[4, 0], [2]]: so they come, also twice; an empty batch fetches nothing."""
    found = examples.__getitems__([[4, 0], [2], [0]])
    assert [[example["input_ids"][0] for example in row] for row in found] == [[110, 0], [20], [0]]
    assert examples.__getitems__([]) == []
    assert [example["row"] for example in found[0]] == [8, 0]


def test_asking_twice_gives_the_same(examples: Examples) -> None:
    """Row numbers are not added up."""
    assert examples.__getitems__([[3]]) == examples.__getitems__([[3]])


def test_rows_that_were_selected_by_index_have_their_own_columns() -> None:
    """A data set with an index over its table: lengths are those of the chosen rows."""
    chosen = part(0, 1, 2, 3).select([3, 1])
    found = Examples([chosen], [4], ["a"])
    assert found.lengths == [4, 2]
    assert [found[index]["row"] for index in range(2)] == [3, 1]


def test_reference_values_go_with_their_pair(examples: Examples) -> None:
    """Value i for example i, whatever the order in which they are fetched."""
    assert "reference_chosen" not in examples[0]
    examples.reference_logps = np.array([[-i, -i - 0.5] for i in range(5)], np.float32)
    found = examples.__getitems__([[4, 1], [0]])
    assert [(e["reference_chosen"], e["reference_rejected"]) for row in found for e in row] == [
        (-4.0, -4.5),
        (-1.0, -1.5),
        (0.0, -0.5),
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_gives_each_example_once(examples: Examples, num_workers: int) -> None:
    """Packed into rows of 4 positions, two rows a batch: 9 positions in all, every row number once."""
    sampler: Any = BatchSampler(examples.lengths, 2, order=Order(shuffle=True, pack_length=4))
    batches = list(DataLoader(examples, batch_sampler=sampler, collate_fn=collate_chats, num_workers=num_workers))
    assert sorted(row for batch in batches for row in batch.example_ids.tolist()) == [0, 2, 4, 6, 8]
    assert sum(batch.num_tokens for batch in batches) == 1 + 2 + 3 + 1 + 2


def test_examples_on_disk_are_fetched_alike(examples: Examples, tmp_path: Path) -> None:
    """Saved and loaded, as from the cache: memory-mapped Arrow."""
    part(0, 2, 4).save_to_disk(str(tmp_path))
    found = Examples([Dataset.load_from_disk(str(tmp_path))], [5], ["a"])
    assert found.__getitems__([[2, 0]]) == examples.__getitems__([[2, 0]])
    assert found.lengths == [1, 2, 3]
