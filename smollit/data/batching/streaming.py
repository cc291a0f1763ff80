"""Training rows that do not fit on the disk: read, encoded and divided among ranks and workers during training.

Every rank and worker walks the same order of raw rows, which costs little, and encodes its own rows only:

- the global batch b is rows [b * G, (b + 1) * G) of the order, where G = batch_size * world_size;
- of it, rank r takes rows r, r + world_size, ...;
- worker w of W encodes the batches b with b % W = w, and the DataLoader takes turns among workers.

So each row is used once, all ranks have the same number of batches, and batches do not depend on the workers.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from smollit.data.batching.dataset import Example
from smollit.data.batching.position import Position
from smollit.data.batching.shares import shares_of
from smollit.data.formats.drop_reason import DropReason
from smollit.data.sources.files import Row
from smollit.data.sources.json_text import malformed
from smollit.data.sources.readers import columns_of, rows_of
from smollit.data.sources.source import Source

log = logging.getLogger(__name__)

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Stream:
    """One part of a streamed split.

    Args:
        source: Its rows, which are neither loaded as a whole nor hashed.
        encoder: Columns of rows and their numbers -> columns of examples, with `problem` empty where a row is good.
        weight: How often each row is seen per epoch; a fraction is each row's chance to be seen once more.
    """

    source: Source
    encoder: Callable[[Columns, list[int]], Columns]
    weight: float = 1.0


class Numbered(NamedTuple):
    """A raw row: its part, its number in the part's stream from 0, and its columns."""

    part: int
    number: int
    row: Row


class StreamingExamples(IterableDataset[list[Example]]):
    """One list of good examples per batch of this rank; a bad row makes its batch smaller, perhaps empty.

    For `DataLoader(..., batch_size=None, collate_fn=...)`, without persistent workers: they would keep the position
    that they were started with. Each pass is one epoch, from `position` on. Rows that are done are read again, but
    not encoded. Dropped rows are counted and logged by the process that encounters them.

    Args:
        streams: Parts, which are interleaved so that they end at about the same time.
        batch_size: Rows per batch and rank.
        rank: Rank of this process.
        world_size: Number of processes.
        seed: Seed of the orders.
        shuffle_buffer: Rows among which the next one is drawn; 0 keeps the order of the files.
        position: Epoch and rows done; read when an epoch begins.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle_buffer: int = 0,
        position: Position | None = None,
    ) -> None:
        super().__init__()
        if shuffle_buffer < 0:
            raise ValueError(f"`shuffle_buffer` must be at least 0, got {shuffle_buffer}")
        self.streams = tuple(streams)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.position = position or Position()
        self.dropped: Counter[str] = Counter()
        self.unprinted: set[str] = set()

    @property
    def epochs_differ(self) -> bool:
        """False: their lengths are unknown."""
        return False

    @property
    def global_batch_size(self) -> int:
        """Rows per micro-batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def group(self) -> int:
        """Global batch size that the order is made for: any."""
        return self.global_batch_size

    def num_batches(self, epoch: int) -> None:
        """Unknown: the stream is read during training."""

    def num_rows(self) -> None:
        """Unknown: the stream is read during training."""

    def batches_before(self) -> int:
        """Batches of the epoch before `position`."""
        return self.position.rows // self.global_batch_size

    def rows_after(self, num_batches: int) -> int:
        """Rows of the epoch that are done after so many batches from `position` on."""
        return self.position.rows + num_batches * self.global_batch_size

    def __iter__(self) -> Iterator[list[Example]]:
        worker = get_worker_info()
        ours, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        order = self._order()
        first = next(order, None)
        if first is None:
            names = ", ".join(stream.source.dataset for stream in self.streams)
            rules = {stream.source.where.text for stream in self.streams if stream.source.where}
            true = f" for which `data.where: {' or '.join(sorted(rules))}` is true" if rules else ""
            raise ValueError(f"{names}: the stream has no rows{true}")
        order = islice(chain([first], order), self.position.rows, None)
        for number, rows in enumerate(batched(order, self.global_batch_size)):
            if number % num_workers == ours:
                yield self._encode(rows[self.rank :: self.world_size])

    @cached_property
    def _shares(self) -> list[float]:
        return shares_of([(stream.source, stream.weight) for stream in self.streams])

    def _order(self) -> Iterator[Numbered]:
        epoch = self.position.epoch
        parts = [_part_rows(part, stream, self.seed, epoch) for part, stream in enumerate(self.streams)]
        rows = interleave(parts, self._shares, _random(self.seed, epoch, "turns"))
        return shuffled(rows, self.shuffle_buffer, _random(self.seed, epoch, "buffer"))

    def _encode(self, rows: list[Numbered]) -> list[Example]:
        """Good examples, in the order of the rows; each part has its own encoder."""
        found: dict[tuple[int, int], list[Example]] = {}  # by part and number: of some rows, several
        for part, stream in enumerate(self.streams):
            ours = [row for row in rows if row.part == part]
            if ours:
                columns = stream.encoder(columns_of(row.row for row in ours), [row.number for row in ours])
                for example in rows_of(columns):
                    found.setdefault((part, example["row"]), []).append(example)
        examples = ((example, row) for row in rows for example in found.pop((row.part, row.number), []))
        return [example for example, row in examples if self._is_good(example, row)]

    def _is_good(self, example: Example, row: Numbered) -> bool:
        cause, detail = example.pop("problem"), example.pop("detail", "")
        if cause == DropReason.MALFORMED_JSON:
            raise malformed(self.streams[row.part].source.files)
        for name in example.pop("unprinted", []):
            self._warn_of_unprinted(name, row)
        if cause:
            self._count(cause, detail, row)
        return not cause

    def _warn_of_unprinted(self, name: str, row: Numbered) -> None:
        if name not in self.unprinted:
            self.unprinted.add(name)
            where = f"row {row.number} of {self.streams[row.part].source.dataset}"
            log.warning("%s has %s, which the chat template does not print: the model never sees it", where, name)

    def _count(self, cause: str, detail: str, row: Numbered) -> None:
        self.dropped[cause] += 1
        count = self.dropped[cause]
        where = f"row {row.number} of {self.streams[row.part].source.dataset}"
        if count == 1:
            log.warning("%s is dropped: %s (%s). More are counted", where, cause, detail)
        elif math.log10(count).is_integer():
            log.warning("%d rows dropped by this process so far: %s, most recently %s", count, cause, where)


def interleave(
    parts: Sequence[Iterator[Numbered]], weights: Sequence[float], draw: random.Random
) -> Iterator[Numbered]:
    """Rows of several parts, each in its own order; the next part is drawn by the `weights` of the unfinished ones."""
    alive = list(range(len(parts)))
    while alive:
        part = draw.choices(alive, [weights[part] for part in alive])[0] if len(alive) > 1 else alive[0]
        row = next(parts[part], None)
        if row is None:
            alive.remove(part)
        else:
            yield row


def shuffled(rows: Iterator[Numbered], size: int, draw: random.Random) -> Iterator[Numbered]:
    """Each row once, drawn from a buffer of `size` rows that is refilled; 0 keeps the order."""
    buffer = list(islice(rows, size))
    for row in rows:
        if not buffer:
            yield row
            continue
        index = int(draw.random() * len(buffer))
        yield buffer[index]
        buffer[index] = row
    draw.shuffle(buffer)
    yield from buffer


def batched(rows: Iterator[Numbered], size: int) -> Iterator[list[Numbered]]:
    """Lists of `size` rows; the last may be shorter."""
    while batch := list(islice(rows, size)):
        yield batch


def _part_rows(part: int, stream: Stream, seed: int, epoch: int) -> Iterator[Numbered]:
    """An epoch's rows of one part: full copies one after the other, then each row with the remaining probability."""
    whole, fraction = math.floor(stream.weight), stream.weight - math.floor(stream.weight)
    for _ in range(whole):
        yield from _numbered(part, stream)
    if fraction:
        chance = _random(seed, epoch, f"part {part}")
        yield from (row for row in _numbered(part, stream) if chance.random() < fraction)


def _numbered(part: int, stream: Stream) -> Iterator[Numbered]:
    return (Numbered(part, number, row) for number, row in stream.source.numbered())


def _random(seed: int, epoch: int, name: str) -> random.Random:
    """A generator from (seed, epoch) alone, so that all ranks and workers draw the same."""
    return random.Random(f"{seed} {epoch} {name}")
