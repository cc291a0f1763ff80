"""Packing: whole examples into rows of fixed length, best fit, over a whole epoch. Pure functions of lengths."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest row that still has room. Nothing is split.

    Examples of equal length keep the order that they come in, so another order gives other neighbours and the same
    number of rows. Best-fit decreasing needs at most 11/9 of the fewest rows possible, plus 1
    (Johnson et al. 1974, https://doi.org/10.1137/0203025).

    Args:
        lengths: Positions of every example of the data set.
        order: Which examples to pack, each once.
        capacity: Positions of a row.

    Returns:
        Rows of example numbers; each example of `order` in exactly one.

    Raises:
        ValueError: If an example is longer than a row.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # room left -> numbers of the rows that have it
    rooms: list[int] = []  # the keys of `open_rows`, ascending
    for example in sorted(order, key=lambda index: -lengths[index]):
        length = lengths[example]
        if length > capacity:
            raise ValueError(
                f"`data.pack_length` is {capacity}, and example {example} has {length} positions: raise it, or lower"
                " `data.max_length`"
            )
        place = bisect_left(rooms, length)
        if place == len(rooms):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room = rooms[place]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[place]
        rows[row].append(example)
        left = room - length
        if left not in open_rows:
            open_rows[left] = []
            insort(rooms, left)
        open_rows[left].append(row)
    return rows


def fill_rate(lengths: Sequence[int], rows: Sequence[Sequence[int]], capacity: int) -> float:
    """Share of the rows' positions that hold tokens, 0 to 1."""
    return sum(lengths[example] for row in rows for example in row) / (capacity * max(len(rows), 1))
