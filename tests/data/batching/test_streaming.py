"""Streams: each row once over ranks and workers, the same batches after a resume, bad rows counted."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from smollit.data.batching.position import Position
from smollit.data.batching.shares import shares_of
from smollit.data.batching.streaming import Stream, StreamingExamples
from smollit.data.sources.mixture import load_source
from smollit.data.sources.readers import RAW
from smollit.data.sources.source import Source
from smollit.data.sources.where import Expression

Columns = dict[str, list[Any]]


def encode(rows: Columns, indices: list[int]) -> Columns:
    """In the place of the real one: text -> its length as the one token; other lines are bad."""
    lines = rows[RAW] if RAW in rows else [json.dumps({"n": number}) for number in rows["n"]]
    good = [line.startswith("{") for line in lines]
    numbers = [json.loads(line)["n"] if ok else -1 for line, ok in zip(lines, good, strict=True)]
    problems = ["" if ok else "empty text" for ok in good]
    return {"n": numbers, "row": indices, "problem": problems, "detail": ["" if ok else "why" for ok in good]}


def lines(path: Path, num: int, first: int = 0) -> Path:
    path.write_text("".join(json.dumps({"n": number}) + "\n" for number in range(first, first + num)))
    return path


def stream(path: Path, split: str = "train", weight: float = 1.0) -> Stream:
    return Stream(load_source(str(path), split), encode, weight)


def same(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batch


def batches(examples: StreamingExamples, num_workers: int = 0) -> list[list[int]]:
    """Of one epoch through the loader that training has."""
    loader = DataLoader(examples, batch_size=None, num_workers=num_workers, collate_fn=same)
    return [[example["n"] for example in batch] for batch in loader]


def flat(lists: list[list[int]]) -> list[int]:
    return [number for numbers in lists for number in numbers]


# ---- each row once


# promise: streams
# case: data-08
# case: data-13
@pytest.mark.parametrize("shuffle_buffer", [0, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_share_the_rows(tmp_path: Path, num_workers: int, shuffle_buffer: int) -> None:
    """13 rows, 2 ranks of 3: global batches of 6, 6 and 1: 3 batches for both ranks, the last one empty for rank 1."""
    streams = [stream(lines(tmp_path / "a.jsonl", 13))]
    ranks = [
        batches(StreamingExamples(streams, 3, rank=rank, world_size=2, shuffle_buffer=shuffle_buffer), num_workers)
        for rank in range(2)
    ]
    assert [list(map(len, rank)) for rank in ranks] == [[3, 3, 1], [3, 3, 0]]
    assert sorted(flat(ranks[0]) + flat(ranks[1])) == list(range(13))


def test_ranks_see_the_rows_of_one_process_step_by_step(tmp_path: Path) -> None:
    """1 x 4 and 2 x 2: the same rows in the same optimizer step."""
    streams = [stream(lines(tmp_path / "a.jsonl", 10))]
    one = batches(StreamingExamples(streams, 4, shuffle_buffer=5))
    two = [batches(StreamingExamples(streams, 2, rank=rank, world_size=2, shuffle_buffer=5)) for rank in range(2)]
    assert [sorted(batch) for batch in one] == [sorted(a + b) for a, b in zip(*two, strict=True)]


def test_files_of_all_kinds_are_streamed(tmp_path: Path) -> None:
    """A parquet file goes by columns and has no RAW; 600 rows are more than what is read at once."""
    Dataset.from_dict({"n": list(range(600))}).to_parquet(tmp_path / "a.parquet")
    assert flat(batches(StreamingExamples([stream(tmp_path / "a.parquet")], 7))) == list(range(600))


# ---- orders


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    streams = [stream(lines(tmp_path / "a.jsonl", 30))]
    orders = {
        tuple(flat(batches(StreamingExamples(streams, 4, seed=seed, shuffle_buffer=8, position=Position(epoch)))))
        for seed in range(2)
        for epoch in range(2)
    }
    assert len(orders) == 4
    assert all(sorted(order) == list(range(30)) for order in orders)


@pytest.mark.parametrize("size", [1, 29, 30, 100])
def test_a_buffer_of_any_size_gives_each_row_once(tmp_path: Path, size: int) -> None:
    """From the buffer of 8 below, row r can't come before step r - 8; one of 100 holds all 30."""
    order = flat(batches(StreamingExamples([stream(lines(tmp_path / "a.jsonl", 30))], 4, shuffle_buffer=size)))
    assert sorted(order) == list(range(30))
    assert all(row <= step + size for step, row in enumerate(order))
    assert (order != list(range(30))) == (size > 1)


# ---- resume


# case: resume-01
@pytest.mark.parametrize("shuffle_buffer", [0, 5])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_same_batches(
    tmp_path: Path, num_workers: int, world_size: int, shuffle_buffer: int
) -> None:
    """In epoch 2, after 3 global batches of 2 per rank: the batches from the fourth on, whatever the workers."""
    parts = [stream(lines(tmp_path / "a.jsonl", 15)), stream(lines(tmp_path / "b.jsonl", 8, first=100), weight=1.5)]

    def run(rank: int, rows: int, workers: int) -> list[list[int]]:
        position = Position(epoch=2, rows=rows)
        return batches(
            StreamingExamples(
                parts, 2, rank=rank, world_size=world_size, seed=5, shuffle_buffer=shuffle_buffer, position=position
            ),
            workers,
        )

    for rank in range(world_size):
        whole = run(rank, 0, 0)
        assert len(whole) > 4
        assert run(rank, 3 * 2 * world_size, num_workers) == whole[3:]


def test_a_run_that_ended_an_epoch_has_nothing_left_of_it(tmp_path: Path) -> None:
    examples = StreamingExamples([stream(lines(tmp_path / "a.jsonl", 4))], 2, position=Position(0, rows=4))
    assert batches(examples) == []


# ---- several parts


def test_parts_are_read_at_the_same_time_each_in_its_order(tmp_path: Path) -> None:
    """300 and 100 rows of like size: about a quarter of the first 100 rows are of the second part, and all come."""
    parts = [stream(lines(tmp_path / "a.jsonl", 300, 1000)), stream(lines(tmp_path / "b.jsonl", 100, 2000))]
    order = flat(batches(StreamingExamples(parts, 8)))
    assert [row for row in order if row < 2000] == list(range(1000, 1300))
    assert [row for row in order if row >= 2000] == list(range(2000, 2100))
    assert 15 <= sum(row >= 2000 for row in order[:100]) <= 35


def test_parts_of_unlike_weights_end_together(tmp_path: Path) -> None:
    """300 rows once and 100 rows of like size 3 times: halves, from the start to the end."""
    parts = [stream(lines(tmp_path / "a.jsonl", 300, 1000)), stream(lines(tmp_path / "b.jsonl", 100, 2000), weight=3)]
    order = flat(batches(StreamingExamples(parts, 8)))
    for piece in (order[:100], order[400:500]):
        assert 35 <= sum(row >= 2000 for row in piece) <= 65


def test_shares_are_sizes_of_text_times_weights(tmp_path: Path) -> None:
    """100 bytes; 100 packed bytes twice: about 2 * 300; a Hub id, of unknown size: the mean of 100 and 300."""
    for name in ("a.jsonl", "b.jsonl.zst"):
        (tmp_path / name).write_bytes(b"x" * 100)
    hub = (Source(dataset="org/rows", split="train"), 1.0)
    one, two = (stream(tmp_path / name).source for name in ("a.jsonl", "b.jsonl.zst"))
    assert shares_of([(one, 1), (two, 2), hub]) == [100, 600, 200]
    assert shares_of([hub, hub]) == [1, 1]


def test_the_first_rows_of_a_large_part_come_spread_over_the_epoch(tmp_path: Path) -> None:
    """50 of 3,000 rows beside 150 rows of like size: about a quarter of the first 100 rows are theirs."""
    large = stream(lines(tmp_path / "a.jsonl", 3000, 2000))
    parts = [replace(large, source=replace(large.source, max_rows=50)), stream(lines(tmp_path / "b.jsonl", 150, 1000))]
    order = flat(batches(StreamingExamples(parts, 8)))
    assert sorted(order) == [*range(1000, 1150), *range(2000, 2050)]
    assert 12 <= sum(row >= 2000 for row in order[:100]) <= 38


def test_weights_repeat_rows_or_leave_them_to_chance(tmp_path: Path) -> None:
    """Weight 2.5: each of 200 rows twice, and about half of them (100 +- 5 sigma = 35) once more, others next epoch."""
    part = stream(lines(tmp_path / "a.jsonl", 200), weight=2.5)
    epochs = [Counter(flat(batches(StreamingExamples([part], 8, position=Position(epoch))))) for epoch in range(2)]
    for seen in epochs:
        assert set(seen) == set(range(200)) and set(seen.values()) == {2, 3}
        assert 65 < sum(times == 3 for times in seen.values()) < 135
    assert epochs[0] != epochs[1]


def test_each_part_has_its_own_encoder_and_row_numbers(tmp_path: Path) -> None:
    def named(name: str) -> Callable[[Columns, list[int]], Columns]:
        return lambda rows, indices: encode(rows, indices) | {"part": [name] * len(indices)}

    parts = [
        replace(stream(lines(tmp_path / f"{name}.jsonl", 6, first)), encoder=named(name))
        for name, first in (("a", 0), ("b", 100))
    ]
    examples = [example for batch in StreamingExamples(parts, 4) for example in batch]
    assert sorted((example["part"], example["row"], example["n"]) for example in examples) == [
        *(("a", row, row) for row in range(6)),
        *(("b", row, 100 + row) for row in range(6)),
    ]


# ---- bad rows


def test_bad_rows_make_batches_smaller_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines 1, 2 and 3 of 6 are bad: batches of 1, 0 and 2 examples, and no row moves to another batch."""
    (tmp_path / "a.jsonl").write_text('{"n": 0}\noops\nno\n[]\n{"n": 4}\n{"n": 5}\n')
    examples = StreamingExamples([stream(tmp_path / "a.jsonl")], 2)
    with caplog.at_level(logging.WARNING):
        found = list(examples)
    assert found == [[{"n": 0, "row": 0}], [], [{"n": 4, "row": 4}, {"n": 5, "row": 5}]]
    assert examples.dropped == {"empty text": 3}
    assert [record.getMessage() for record in caplog.records] == [
        f"row 1 of {tmp_path / 'a.jsonl'} is dropped: empty text (why). More are counted"
    ]


def test_dropped_rows_are_told_of_at_powers_of_ten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """150 bad rows: a word at the 1st, the 10th and the 100th."""
    (tmp_path / "a.jsonl").write_text("oops\n" * 150)
    with caplog.at_level(logging.WARNING):
        list(StreamingExamples([stream(tmp_path / "a.jsonl")], 4))
    assert [record.getMessage().split(":")[0] for record in caplog.records[1:]] == [
        "10 rows dropped by this process so far",
        "100 rows dropped by this process so far",
    ]


def test_a_stream_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: the stream has no rows"):
        batches(StreamingExamples([stream(tmp_path / "a.jsonl")], 2))
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    source = replace(load_source(str(tmp_path / "a.jsonl"), "train"), where=Expression("text == 'b'"))
    with pytest.raises(
        ValueError, match=r"a\.jsonl: the stream has no rows for which `data.where: text == 'b'` is true"
    ):
        batches(StreamingExamples([Stream(source, encode, 1.0)], 2))
    with pytest.raises(ValueError, match="`shuffle_buffer` must be at least 0, got -1"):
        StreamingExamples([], 2, shuffle_buffer=-1)


# ---- cost


def test_nothing_is_hashed_loaded_or_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that never ends: the first batch comes all the same, after as many rows as the buffer and it need."""
    for name in ("rows", "fingerprint"):
        monkeypatch.setattr(Source, name, property(lambda self: pytest.fail("the whole split is read")))
    read = []

    def endless(self: Source) -> Any:
        for number in count():
            read.append(number)
            yield number, {"n": number}

    monkeypatch.setattr(Source, "numbered", endless)
    first = next(iter(StreamingExamples([stream(lines(tmp_path / "a.jsonl", 1))], 3, shuffle_buffer=10)))
    assert len(first) == 3
    assert len(read) == 13


# ---- folders that only `datasets` can read


def test_a_layout_of_the_hub_is_streamed_whole_by_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` deals files out to workers by itself; then each of ours would walk another. Nothing is loaded."""
    for shard in range(4):
        (tmp_path / "rows" / "train").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"n": list(range(5 * shard, 5 * shard + 5))}).to_parquet(
            tmp_path / "rows" / "train" / f"{shard}.parquet"
        )
    monkeypatch.setattr(Source, "_all_rows", property(lambda self: pytest.fail("the whole split is loaded")))
    source = load_source(str(tmp_path / "rows"), "train", streaming=True)
    assert source.files == ()
    assert source.columns() == ["n"] and source.head(2) == [{"n": 0}, {"n": 1}]
    examples = StreamingExamples([Stream(source, encode)], 2)
    assert batches(examples, num_workers=2) == batches(examples) == [[n, n + 1] for n in range(0, 20, 2)]
