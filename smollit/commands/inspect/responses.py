"""The pairs of one prompt as one row for reading: the prompt once, each response once, and which was preferred."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from smollit.commands.inspect.pieces import InspectedRow, Piece


def with_shared_prompts(records: Sequence[InspectedRow]) -> list[InspectedRow]:
    """The records of a row, with pairs of the same prompt beside one another as one."""
    found = []
    for _, some in groupby(records, key=lambda one: [_branch(one, "shared"), one.problem]):
        group = list(some)
        if len(group) > 1 and not group[0].problem and _branch(group[0], "chosen"):
            found.append(_joined(group))
        else:
            found += group
    return found


def _joined(pairs: Sequence[InspectedRow]) -> InspectedRow:
    """One row with the prompt, `response 1`, `response 2` and so on, and its pairs as a note."""
    responses: list[list[Piece]] = []
    compared = []
    for pair in pairs:
        for name in ("chosen", "rejected"):
            pieces = [piece._replace(branch="") for piece in _branch(pair, name)]
            if pieces not in responses:
                responses.append(pieces)
            compared.append(responses.index(pieces) + 1)
    gaps = ["" if pair.gap is None else f" by {pair.gap:g}" for pair in pairs]
    said = [f"{a} over {b}{gap}" for a, b, gap in zip(compared[::2], compared[1::2], gaps, strict=True)]
    named = [
        piece._replace(branch=f"response {number}") for number, pieces in enumerate(responses, 1) for piece in pieces
    ]
    notes = dict.fromkeys(note for pair in pairs for note in pair.notes)
    title = f"{len(pairs)} pairs of {len(responses)} responses: {', '.join(said)}"
    return replace(pairs[0], pieces=_branch(pairs[0], "shared") + named, notes=[title, *notes], record="")


def _branch(row: InspectedRow, name: str) -> list[Piece]:
    return [piece for piece in row.pieces if piece.branch == name]
