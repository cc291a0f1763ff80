"""Ranking: which of several responses to a prompt is preferred, as `data.columns.chosen_if` says it."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import shown
from smollit.data.sources.files import Row
from smollit.data.sources.where import Expression

PairsOf = Literal["best-worst", "all"]
EXAMPLE = "`highest score`, `lowest answers.rank`, or, of two responses, `highest winner == 'a', winner == 'b'`"
MISSING = ("", "n/a", "nan", "null", "none")  # texts of a score that was not given, in lower case


@dataclass(frozen=True)
class Ranking:
    """The scores of a row's responses: `highest score`, or `lowest` where a smaller number is better.

    One expression gives the scores of all responses, as a list, or the score of a row's only one; several, with commas
    between them, give one score each.

    Args:
        text: `highest` or `lowest`, and the expressions.
    """

    text: str

    def __post_init__(self) -> None:
        if self.text.split(" ", 1)[0] not in ("highest", "lowest") or " " not in self.text.strip():
            raise ValueError(f"`data.columns.chosen_if` is {self.text!r}, and must be as {EXAMPLE}")
        self.expression  # noqa: B018  (its errors)

    @cached_property
    def expression(self) -> Expression:
        """The expressions, as one that gives a list if there are several."""
        return Expression(self.text.split(" ", 1)[1], "data.columns.chosen_if")

    def scores(self, row: Row, count: int) -> list[float | None]:
        """The score of each response, higher for better ones; null where it is missing.

        Raises:
            BadRow: If there is not one score for each response, or one is no number.
        """
        found = self.expression(row)
        values = found if isinstance(found, list) else [found]
        if len(values) != count:
            raise BadRow(DropReason.MALFORMED_SCORE, f"chosen_if gives {len(values)} scores for {count} responses")
        sign = -1.0 if self.text.startswith("lowest") else 1.0
        scores = [parse_score(int(value) if isinstance(value, bool) else value, "chosen_if") for value in values]
        return [None if score is None else sign * score for score in scores]


def parse_score(value: Any, name: str) -> float | None:
    """A score from a number or its text; None if it is null, an empty cell, or the NaN that pandas writes for it."""
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    if is_missing or (isinstance(value, str) and value.strip().lower() in MISSING):
        return None
    try:
        score = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise BadRow(DropReason.MALFORMED_SCORE, f"`{name}` must be a number, got {shown(value)}")
    return score


def ordered_pairs(scores: list[float | None], pairs_of: PairsOf) -> list[tuple[int, int]]:
    """The (chosen, rejected) responses by their positions: best against worst, or all whose scores differ.

    Raises:
        BadRow: If no response is better than another.
    """
    known = [(score, -index) for index, score in enumerate(scores) if score is not None]
    best_first = sorted(known, reverse=True)  # of equal scores, the first response
    if not known or best_first[0][0] == best_first[-1][0]:
        said = ", ".join("null" if score is None else f"{score:g}" for score in scores)
        raise BadRow(DropReason.NO_BETTER_RESPONSE, f"the scores are {said}")
    if pairs_of == "best-worst":
        worst = max(index for score, index in known if score == best_first[-1][0])
        return [(-best_first[0][1], -worst)]
    return [
        (-better, -worse)
        for n, (high, better) in enumerate(best_first)
        for low, worse in best_first[n + 1 :]
        if high > low
    ]
