"""What became of a split's rows, in numbers and in words, and when that is too bad to train on."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from smollit.data.encoding.tally import quantile, read_columns
from smollit.data.formats.drop_reason import DropReason, what_to_do

# Shares above which a person is warned.
MANY_CUT = 0.05
MANY_EQUAL = 0.01
MANY_TIES = 0.05
MANY_REVERSED = 0.01
MANY_DUPLICATES = 0.01
LONGER_MEAN = 1.2  # mean length of chosen over that of rejected
LONGER_SHARE = 0.6  # share of pairs whose chosen answer is the longer one


@dataclass
class Report:
    """What became of the rows of one split. Counts are of kept rows, where nothing else is said.

    Args:
        rows: Rows that came in.
        kept: Rows that can be trained.
        cut: Rows that lost tokens to `max_length`.
        control: Rows with control tokens spelt in their text.
        tokens: Tokens; for pairs of the prompt and both answers.
        trained: Trained tokens.
        lengths: p50, p90, p99, max of the lengths before any cut, of all rows that have one; for pairs of the prompt
            and the longer answer, which is what `max_length` is compared with.
        keep95: The `max_length` that leaves 95 % of those rows whole.
        duplicates: Rows that repeat an earlier row of the split; for pairs, its prompt.
        chosen_mean: Mean tokens of the chosen answers; null for chats.
        rejected_mean: Mean tokens of the rejected answers; null for chats.
        chosen_longer: Pairs whose chosen answer is the longer one.
        scored: Pairs with scores.
        ties: Pairs with equal scores.
        reversed_scores: Pairs whose rejected answer has the higher score.
        dropped: Number of rows per cause.
        examples: Per cause, up to three "row N: what was wrong".
    """

    rows: int
    kept: int
    cut: int
    control: int
    tokens: int
    trained: int
    lengths: dict[str, int]
    keep95: int
    duplicates: int
    chosen_mean: float | None = None
    rejected_mean: float | None = None
    chosen_longer: int = 0
    scored: int = 0
    ties: int = 0
    reversed_scores: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def unwanted(self) -> int:
        """Rows that were dropped although no option asks for it."""
        return sum(count for cause, count in self.dropped.items() if not DropReason(cause).is_requested)

    def dropped_share(self) -> float:
        """Share of rows, 0 to 1, that were dropped although no option asks for it."""
        return self.unwanted() / max(self.rows, 1)

    def summary(self, split: str) -> str:
        """Rows, tokens and lengths in two lines; a third for pairs."""
        quantiles = ", ".join(f"{name} {value:,}" for name, value in self.lengths.items())
        lines = [
            f"{split}: {self.kept:,} of {self.rows:,} rows, trainable tokens {self.trained:,} / {self.tokens:,}"
            f" ({self.trained / max(self.tokens, 1):.1%})",
            f"lengths {quantiles}, {self.cut:,}/{self.kept:,} truncated; 95% fit in {self.keep95:,}",
        ]
        if self.kept and self.chosen_mean is not None and self.rejected_mean is not None:
            scores = f"; {self.ties:,} of {self.scored:,} scores are ties" if self.scored else ""
            lines.append(f"mean tokens: chosen {self.chosen_mean:.1f}, rejected {self.rejected_mean:.1f}{scores}")
        return "\n  ".join(lines)

    def warnings(self, split: str) -> list[str]:
        """All that a person should look at, a sentence each."""
        return [f"{split}: {line}" for line in [*self.concerns(), *self.notes()]]

    def notes(self) -> list[str]:
        """What was changed or dropped: control text, and one line per cause of dropped rows."""
        control = f"{share(self.control, self.kept, 'rows')} spell control tokens in their text, which was escaped"
        return [*([control] if self.control else []), *self.drops()]

    def drops(self) -> list[str]:
        """One line per cause of dropped rows, most frequent first."""
        causes = sorted(self.dropped.items(), key=lambda item: -item[1])
        return [
            f"{count:,} of {self.rows:,} rows dropped, {cause}: {_joined(self.examples[cause])}"
            for cause, count in causes
        ]

    def concerns(self) -> list[str]:
        """What is likely to be wrong with the rows or the settings: number, share, and what to do."""
        equal = self.dropped.get(DropReason.IDENTICAL, 0) if self.kept else 0  # a split of nothing else is refused
        checks = [
            (self._too_long(), self.rows, MANY_CUT, "rows", self._length_advice()),
            (equal, self.rows, MANY_EQUAL, "pairs", EQUAL_ADVICE),
            (self.ties, self.scored, MANY_TIES, "scored pairs", TIES_ADVICE),
            (self.reversed_scores, self.scored, MANY_REVERSED, "scored pairs", REVERSED_ADVICE),
            (self.duplicates, self.kept, MANY_DUPLICATES, "rows", self._duplicates_advice()),
        ]
        found = [
            f"{share(count, total, noun)} {advice}"
            for count, total, limit, noun, advice in checks
            if count > limit * total
        ]
        return found + self._length_bias()

    def _too_long(self) -> int:
        return self.cut + sum(self.dropped.get(cause, 0) for cause in (DropReason.TOO_LONG, DropReason.PROMPT_TOO_LONG))

    def _length_advice(self) -> str:
        return (
            f"are longer than `data.max_length`, and were cut or dropped. {self.keep95:,} would keep 95% of the rows"
            " whole; `data.truncate` says what becomes of the others"
        )

    def _duplicates_advice(self) -> str:
        what = "chat" if self.chosen_mean is None else "prompt"
        return f"repeat the {what} of an earlier row: it is seen more often than the others. Look at how they were made"

    def _length_bias(self) -> list[str]:
        if self.chosen_mean is None or self.rejected_mean is None or not self.kept:
            return []
        ratio = self.chosen_mean / max(self.rejected_mean, 1.0)
        if ratio <= LONGER_MEAN and self.chosen_longer <= LONGER_SHARE * self.kept:
            return []
        return [
            f"in {share(self.chosen_longer, self.kept, 'pairs')} the chosen answer is the longer one (mean"
            f" {self.chosen_mean:.0f} tokens, rejected {self.rejected_mean:.0f}): training may teach length instead of"
            " quality. Watch the length of answers during training, or take a loss that allows for length"
        ]


EQUAL_ADVICE = "have the same text in both columns, and were dropped. Look at the step that made this data"
TIES_ADVICE = (
    "have equal scores: which answer is better is a guess there. `data.score_ties: drop` leaves them out,"
    " `data.min_score_gap` asks for a clear difference"
)
REVERSED_ADVICE = "have a rejected answer with the higher score. Are the columns swapped? `data.columns` names them"


def make_report(examples: Dataset) -> Report:
    """Count what was kept, cut and dropped; memory holds a few numbers per row, never the ids."""
    columns, dropped, named = read_columns(examples)
    good = {name: values[columns["good"]] for name, values in columns.items()}
    lengths = np.sort(columns["full_length"][columns["full_length"] > 0])
    return Report(
        rows=len(columns["good"]),
        kept=len(good["good"]),
        cut=int(good["cut"].sum()),
        control=int((good["control"] > 0).sum()),
        tokens=int(good["length"].sum()),
        trained=int(good["trained"].sum()),
        lengths={f"p{percent}": quantile(lengths, percent) for percent in (50, 90, 99)}
        | {"max": quantile(lengths, 100)},
        keep95=quantile(lengths, 95),
        duplicates=len(good["digest"]) - len(np.unique(good["digest"])),
        dropped=dict(dropped),
        examples=named,
        **(_count_pairs(good) if "score_gap" in good else {}),
    )


def _count_pairs(good: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected, gaps = good["chosen_ids"], good["rejected_ids"], good["score_gap"]
    return {
        "chosen_mean": float(chosen.mean()) if len(chosen) else 0.0,
        "rejected_mean": float(rejected.mean()) if len(rejected) else 0.0,
        "chosen_longer": int((chosen > rejected).sum()),
        "scored": int((~np.isnan(gaps)).sum()),
        "ties": int((gaps == 0).sum()),
        "reversed_scores": int((gaps < 0).sum()),
    }


def check_report(report: Report, split: str, max_dropped_share: float) -> None:
    """Refuse rows that can't be trained on.

    Raises:
        ValueError: If no row is left, all pairs are equal, more rows were dropped than allowed (those that an option
            drops aside), or there is a row for which an option refuses the run.
    """
    if report.kept == 0 and 2 * report.dropped.get(DropReason.IDENTICAL, 0) > report.rows:
        raise ValueError(
            f"in {_all_of(report.dropped[DropReason.IDENTICAL], report.rows)} pairs of split {split}, `chosen` and"
            " `rejected` are the same text. The loss would stay at ln 2 = 0.6931, and accuracies and margins would say"
            " nothing. Look at the step that made this data: it probably writes one response into both columns"
        )
    found = set(map(DropReason, report.dropped))
    fatal = {reason for reason in found if reason.is_fatal}
    if report.kept and not fatal and report.dropped_share() <= max_dropped_share:
        return
    count = report.unwanted() if report.kept else report.rows
    reasons = fatal or {reason for reason in found if not report.kept or not reason.is_requested}
    limit = "" if fatal else f", and `data.max_dropped_share` is {max_dropped_share:g}"
    raise ValueError(
        f"{_all_of(count, report.rows)} rows of split {split} can't be used{limit}:\n"
        + "\n".join([*report.drops(), what_to_do(reasons, report.kept, report.dropped_share())])
    )


def write_reports(reports: dict[str, Report], folder: Path) -> Path:
    """Write data_report.json, a report per split, into a run's folder; it appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".data_report.json.{os.getpid()}"
    temporary.write_text(to_json(reports), encoding="utf-8")
    return temporary.replace(folder / "data_report.json")


def to_json(reports: dict[str, Report]) -> str:
    """The reports by the name of their split, as indented JSON."""
    return json.dumps({split: asdict(report) for split, report in reports.items()}, indent=2, ensure_ascii=False) + "\n"


def _all_of(count: int, total: int) -> str:
    return f"all {total:,}" if count == total else f"{count:,} of {total:,}"


def _joined(examples: list[str]) -> str:
    """Examples in one line; rows with the same fault are named together."""
    rows: dict[str, list[str]] = {}
    for number, _, detail in (example.removeprefix("row ").partition(": ") for example in examples):
        rows.setdefault(detail, []).append(number)
    return "; ".join(
        f"{'rows' if len(same) > 1 else 'row'} {', '.join(same)}: {detail}" for detail, same in rows.items()
    )


def share(count: int, total: int, noun: str) -> str:
    """For example `12 of 60 rows (20.0%)`."""
    return f"{count:,} of {total:,} {noun} ({count / max(total, 1):.1%})"
