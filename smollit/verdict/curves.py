"""Curves: the metrics of a run by step, and Finding: one thing that they say."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Points = dict[int, float]  # value by step
LN_2 = math.log(2)
FLAT = 2e-3  # change of a DPO loss, in nats, below which nothing was learned


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
    ) -> None:
        self.rows = rows
        self.num_val = num_val
        self.num_train = num_train
        self.truncated = truncated
        self.model_name = model_name
        self.dataset = dataset

    def points(self, name: str) -> Points:
        """The values of a metric that are numbers."""
        return {step: value for step, value in curve(self.rows, name).items() if math.isfinite(value)}

    @property
    def is_dpo(self) -> bool:
        """Whether the run trained on preferences."""
        return any(row.get("train/rewards/margins") or row.get("val/rewards/margins") for row in self.rows)
