"""Intervals by bootstrap over rows: for one model, and for the difference of two models on the same rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Rows(NamedTuple):
    """What a score is made of: for each row a sum and a count. The score is the sum of sums by the sum of counts."""

    sums: Values
    counts: Values

    def interval(self, *, seed: int = 0) -> Interval:
        """The score, and its interval."""
        return _interval(self.sums.sum() / self.counts.sum(), self.drawn(seed))

    def change(self, before: "Rows", *, seed: int = 0) -> Interval:
        """The difference to the score of another model on the same rows, which are drawn together."""
        now, then = self.sums.sum() / self.counts.sum(), before.sums.sum() / before.counts.sum()
        return _interval(now - then, self.drawn(seed) - before.drawn(seed))

    def drawn(self, seed: int) -> Values:
        """The score of DRAWS samples of as many rows, drawn with replacement."""
        generator, size = np.random.default_rng(seed), len(self.sums)
        found = np.empty(DRAWS)
        for draw in range(DRAWS):
            index = generator.integers(size, size=size)
            found[draw] = self.sums[index].sum() / self.counts[index].sum()
        return found


def rows_of(pairs: list[tuple[float, float]]) -> Rows:
    """Rows from (sum, count) of each."""
    sums, counts = np.array(pairs, dtype=np.float64).T
    return Rows(sums, counts)


def _interval(value: float, drawn: Values) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))
