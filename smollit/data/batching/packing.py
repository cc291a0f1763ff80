"""Packing: whole examples into sequences of fixed length, best fit, over a whole epoch. Pure functions of lengths."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest sequence that still has room. Nothing is split.

    Examples of equal length keep their order, so a different order gives other neighbours and the same number of
    sequences. Best-fit decreasing needs at most 11/9 of the fewest sequences possible, plus 1
    (Johnson et al. 1974, https://doi.org/10.1137/0203025).

    Args:
        lengths: Positions of every example of the data set.
        order: Which examples to pack, each once.
        capacity: Positions of a packed sequence.

    Returns:
        Lists of example numbers, one per packed sequence; each example of `order` in exactly one.

    Raises:
        ValueError: If an example is longer than `capacity`.
    """
    packed: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left -> numbers of the sequences that have it
    rooms: list[int] = []  # the keys of `with_room`, ascending
    for example in sorted(order, key=lambda index: -lengths[index]):
        length = lengths[example]
        if length > capacity:
            raise ValueError(
                f"`data.pack_length` is {capacity}, and example {example} has {length} positions: raise it, or lower"
                " `data.max_length`"
            )
        smallest = bisect_left(rooms, length)
        if smallest == len(rooms):
            packed.append([])
            room, sequence = capacity, len(packed) - 1
        else:
            room = rooms[smallest]
            sequence = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[smallest]
        packed[sequence].append(example)
        left = room - length
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(sequence)
    return packed


def fill_rate(lengths: Sequence[int], packed: Sequence[Sequence[int]], capacity: int) -> float:
    """Fraction of the positions that hold tokens, 0 to 1."""
    return sum(lengths[example] for sequence in packed for example in sequence) / (capacity * max(len(packed), 1))


def describe_packing(lengths: Sequence[int], packed: Sequence[Sequence[int]], capacity: int) -> str:
    """The number of sequences and their fill rate, for a log."""
    return (
        f"{sum(map(len, packed)):,} examples in {len(packed):,} sequences of {capacity:,} positions,"
        f" fill rate {fill_rate(lengths, packed, capacity):.1%}"
    )
