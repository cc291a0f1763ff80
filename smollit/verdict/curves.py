"""Curves: the metrics of a run by step, and Finding: one thing that they say."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Points = dict[int, float]  # value by step
LN_2 = math.log(2)
FLAT = 2e-3  # change of a DPO loss, in nats, below which nothing was learned
NEAR = 1e-2  # distance from ln 2, noise included, up to which a training loss is said to stay there


class Finding(NamedTuple):
    """One thing that the curves say.

    Args:
        rule: Name of the rule: see docs/report.md.
        good: True for what one wants, False for a problem, None for a remark.
        text: The sentence, with its numbers.
        advice: What to do; empty if nothing.
    """

    rule: str
    good: bool | None
    text: str
    advice: str = ""


class Ends(NamedTuple):
    """The first and last values of a curve.

    Args:
        first: The first value, or the mean of the first ones.
        last: The last value, or the mean of as many last ones.
        size: Points in each.
        error: Standard error of the difference; 0 for one point each.
    """

    first: float
    last: float
    size: int
    error: float


def ends(name: str, points: Points) -> Ends:
    """The ends of a curve that has a point: of training a quarter of the points each, since single steps are noisy."""
    values = [points[step] for step in sorted(points)]
    count = max(len(values) // 4, 1) if name.startswith("train/") else 1
    parts = values[:count], values[-count:]
    error = math.sqrt(sum(statistics.variance(part) for part in parts) / count) if count > 1 else 0.0
    return Ends(statistics.fmean(parts[0]), statistics.fmean(parts[1]), count, error)


def curve(rows: Iterable[Mapping[str, str]], name: str) -> Points:
    """The values of a metric by step, from the rows of metrics.csv."""
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


class Curves:
    """The metrics of a run by name and step.

    Args:
        rows: Rows of metrics.csv.
        num_val: Rows of the validation split, for intervals; None if unknown.
        num_train: Rows of the training split, likewise.
        truncated: Fraction of the training rows that are truncated; None if unknown.
        model_name: Name of the model, for published curves.
        dataset: Name of the data set, likewise.
        starts_at_ln_2: Whether the settings say that the loss was ln 2 at step 0.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, str]],
        *,
        num_val: int | None = None,
        num_train: int | None = None,
        truncated: float | None = None,
        model_name: str = "",
        dataset: str = "",
        starts_at_ln_2: bool = False,
    ) -> None:
        self.rows = rows
        self.num_val = num_val
        self.num_train = num_train
        self.truncated = truncated
        self.model_name = model_name
        self.dataset = dataset
        self.starts_at_ln_2 = starts_at_ln_2

    def points(self, name: str) -> Points:
        """The values of a metric that are numbers."""
        return {step: value for step, value in curve(self.rows, name).items() if math.isfinite(value)}

    @property
    def is_dpo(self) -> bool:
        """Whether the run trained on preferences."""
        return any(row.get("train/rewards/margins") or row.get("val/rewards/margins") for row in self.rows)

    @property
    def stays_at_ln_2(self) -> bool:
        """Whether the losses of a DPO run are ln 2 and noise, which bf16 makes even where no weight moves."""
        points = self.points("train/loss")
        if not self.is_dpo or not points:
            return False
        later = [points[step] for step in sorted(points)][len(points) // 2 :]
        error = statistics.stdev(later) / math.sqrt(len(later)) if len(later) > 1 else 0.0
        is_near = abs(statistics.fmean(later) - LN_2) + 2 * error < NEAR
        allowed = FLAT + 2 * (self.row_spread(later) / math.sqrt(self.num_val) if self.num_val else 0.0)
        return is_near and all(abs(value - LN_2) < allowed for value in self.points("val/loss").values())

    def row_spread(self, losses: Sequence[float]) -> float:
        """Standard deviation of the loss of single rows, from logged means over rows; 0 if their number is unknown."""
        epochs = self.points("train/epoch")
        if len(losses) < 2 or not epochs or not self.num_train:
            return 0.0
        rows = self.num_train * max(epochs.values()) / len(epochs)
        return statistics.stdev(losses) * math.sqrt(rows)
