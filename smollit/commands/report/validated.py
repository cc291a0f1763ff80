"""The validation rows of runs, from their ledgers: what a metric was measured on, and whether two runs differ on it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from smollit.commands.report.run import Run
from smollit.commands.score.interval import Interval, Rows
from smollit.paths import read_mapping
from smollit.training.ledger import FILE, read_ledger
from smollit.verdict import Finding


class ValidatedRows(NamedTuple):
    """What a validation metric was measured on.

    Args:
        measured: A sum and a count of each row.
        known: Split, row number and hash of each row.
    """

    measured: Rows
    known: list[dict[str, Any]]

    def change(self, before: "ValidatedRows") -> Interval | None:
        """The difference to another run, with its interval; None if that was validated on other rows."""
        return self.measured.change(before.measured) if self.known == before.known else None


def validated_rows(folder: Path, metric: str, step: int) -> ValidatedRows | None:
    """The rows that a validation metric was measured on at a step, in their order, for its interval.

    Args:
        folder: The run folder.
        metric: `val/loss`, `val/rewards/accuracies` or `val/rewards/margins`, or one of a named validation set.
        step: The optimizer step.

    Returns:
        None for other metrics, and where the ledger has no such rows.
    """
    return _measured(read_ledger(folder / FILE), metric, step)


def _measured(entries: pa.Table, metric: str, step: int) -> ValidatedRows | None:
    for name, of_entries in MEASURES.items():
        if metric.endswith(f"/{name}"):
            split = metric.removesuffix(f"/{name}")
            is_split = pc.or_(pc.equal(entries["split"], split), pc.starts_with(entries["split"], f"{split}/"))
            chosen = entries.filter(pc.and_(is_split, pc.equal(entries["step"], step)))
            chosen = chosen.sort_by([("split", "ascending"), ("row", "ascending")])
            known = chosen.select(["split", "row", "hash"]).to_pylist()
            return ValidatedRows(of_entries(chosen), known) if len(chosen) else None
    return None


def _losses(entries: pa.Table) -> Rows:
    weights = entries["weight"].to_numpy().astype(np.float64)
    return Rows(entries["loss"].to_numpy() * weights, weights)


def _accuracies(entries: pa.Table) -> Rows:
    margins = entries["margin"].to_numpy()
    return Rows((margins > 0) + (margins == 0) / 2, np.ones(len(margins)))


def _margins(entries: pa.Table) -> Rows:
    return Rows(entries["margin"].to_numpy().astype(np.float64), np.ones(entries.num_rows))


ACCURACIES = "rewards/accuracies"
MEASURES = {"loss": _losses, ACCURACIES: _accuracies, "rewards/margins": _margins}
OTHER_SCALE = "the runs differ in `model.loss` or in the reference, which set the kind and the scale"


# ---- runs side by side


def losses_compare(models: Sequence[Mapping[str, Any]]) -> bool:
    """Whether DPO runs have losses of one kind and scale: one `model.loss`, against one reference.

    Args:
        models: `model.init_args` of each run.
    """
    scales = [(each.get("loss"), each.get("reference_name") or each.get("model_name")) for each in models]
    return all(scale == scales[0] for scale in scales)


def compared(runs: Sequence[Run]) -> Iterator[list[Finding]]:
    """What tells each run from the first one, on the validation rows that both have at their last common validation."""
    first, *others = runs
    yield []
    of_first = read_ledger(first.folder / FILE) if others else None
    for run in others:
        shared = set(run.curves.points("val/loss")) & set(first.curves.points("val/loss"))
        ledgers = read_ledger(run.folder / FILE), of_first
        names = [name for name in MEASURES if run.curves.points(f"val/{name}")]
        settings = [read_mapping(each.folder / "config.yaml").get("model", {}) for each in (first, run)]
        if run.curves.is_dpo and not losses_compare([each.get("init_args", {}) for each in settings]):
            names = [ACCURACIES]
        yield list(_differences(ledgers, names, first.name, max(shared))) if shared else []


def _differences(ledgers: tuple[pa.Table, pa.Table], names: list[str], first: str, step: int) -> Iterator[Finding]:
    said = []
    for name in names:
        mine, theirs = (_measured(entries, f"val/{name}", step) for entries in ledgers)
        change = mine.change(theirs) if mine and theirs else None
        if change:
            clear = "" if change.low > 0 or change.high < 0 else ", no clear difference"
            said.append(f"`val/{name}` {change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f}{clear})")
    if said:
        text = f"against {first} on the same validation rows, at step {step}, with 95 % intervals: "
        other = f" (losses and margins do not compare: {OTHER_SCALE})" if names == [ACCURACIES] else ""
        yield Finding("compared", None, text + "; ".join(said) + other)
