"""What became of a split's rows, in numbers and in words, and when that is too bad to train on."""

from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from smollit.data.chat import REFUSED
from smollit.data.encode import EQUAL, EQUAL_AFTER_CUT, PROMPT_TOO_LONG, UNTRAINED

LENGTH = "raise `data.max_length`"
ADVICE = {
    EQUAL_AFTER_CUT: LENGTH,
    PROMPT_TOO_LONG: LENGTH,
    UNTRAINED: LENGTH,
    REFUSED: "set `data.chat_template` to chatml or to a Jinja file that fits these chats",
}


@dataclass
class Report:
    """What became of the rows of one split; lengths are in tokens, for pairs of the prompt and both answers.

    Args:
        rows: Rows that came in.
        kept: Rows that can be trained.
        cut: Kept rows that lost tokens to `max_length`.
        control: Kept rows with special tokens written in their text.
        tokens: Tokens of the kept rows.
        trained: Trained tokens of the kept rows.
        lengths: Quantiles p50, p95, max of the kept rows' lengths.
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
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def dropped_share(self) -> float:
        """Share of rows that were dropped, 0 to 1."""
        return 1 - self.kept / self.rows

    def summary(self, split: str) -> str:
        """Rows, tokens and lengths in one line."""
        share = self.trained / self.tokens if self.tokens else 0.0
        quantiles = ", ".join(f"{name} {value:,}" for name, value in self.lengths.items())
        return (
            f"{split}: {self.kept:,} of {self.rows:,} rows, trainable tokens {self.trained:,} / {self.tokens:,}"
            f" ({share:.1%}), lengths {quantiles}, {self.cut:,}/{self.kept:,} truncated"
        )

    def warnings(self, split: str) -> list[str]:
        """What a person should look at: control text, and one line per cause of dropped rows."""
        control = f"{self.control:,} rows hold the text of special tokens, which are read as such"
        return [f"{split}: {line}" for line in ([control] if self.control else []) + self.drops()]

    def drops(self) -> list[str]:
        """One line per cause of dropped rows, most frequent first."""
        causes = sorted(self.dropped.items(), key=lambda item: -item[1])
        return [
            f"{count:,} of {self.rows:,} rows dropped, {cause}: {'; '.join(self.examples[cause])}"
            for cause, count in causes
        ]


def make_report(examples: Dataset) -> Report:
    """Count what was kept, cut and dropped."""
    columns = examples.select_columns(["problem", "detail", "row", "length", "trained", "cut", "control"]).to_pandas()
    good = columns[columns["problem"] == ""]
    bad = columns[columns["problem"] != ""]
    named = {
        cause: [f"row {row}: {detail}" for row, detail in zip(rows["row"][:3], rows["detail"][:3], strict=True)]
        for cause, rows in bad.groupby("problem")
    }
    lengths = good["length"].to_numpy() if len(good) else np.zeros(1, dtype=int)
    p50, p95 = np.percentile(lengths, [50, 95], method="nearest")
    return Report(
        rows=len(columns),
        kept=len(good),
        cut=int(good["cut"].sum()),
        control=int((good["control"] > 0).sum()),
        tokens=int(good["length"].sum()),
        trained=int(good["trained"].sum()),
        lengths={"p50": int(p50), "p95": int(p95), "max": int(lengths.max())},
        dropped={str(cause): int(count) for cause, count in bad["problem"].value_counts().items()},
        examples={str(cause): rows for cause, rows in named.items()},
    )


def check_report(report: Report, split: str, max_dropped_share: float) -> None:
    """Refuse rows that can't be trained on.

    Raises:
        ValueError: If no row is left, all pairs are equal, or more rows were dropped than allowed.
    """
    if report.kept == 0 and 2 * report.dropped.get(EQUAL, 0) > report.rows:
        raise ValueError(
            f"in {_all_of(report.dropped[EQUAL], report.rows)} pairs of split {split}, `chosen` and `rejected` are the"
            " same text. The loss would stay at ln 2 = 0.6931, and accuracies and margins would say nothing. Look at"
            " the step that made this data: it probably writes one answer into both columns"
        )
    if report.kept > 0 and report.dropped_share() <= max_dropped_share:
        return
    num_dropped = report.rows - report.kept
    raise ValueError(
        f"{_all_of(num_dropped, report.rows)} rows of split {split} can't be used, and `data.max_dropped_share` is"
        f" {max_dropped_share:g}:\n" + "\n".join([*report.drops(), _what_to_do(report)])
    )


def _what_to_do(report: Report) -> str:
    advice = list(dict.fromkeys(ADVICE[cause] for cause in report.dropped if cause in ADVICE))
    if set(report.dropped) == {REFUSED} and report.kept == 0:
        return f"the chat template is the reason: {ADVICE[REFUSED]}"
    if set(report.dropped) - set(ADVICE):
        advice.append("mend the rows")
    if report.kept:
        advice.append(f"raise `data.max_dropped_share` above {report.dropped_share():.3g} to go on without these rows")
    return "What to do: " + ", or ".join(advice)


def _all_of(count: int, total: int) -> str:
    return f"all {total:,}" if count == total else f"{count:,} of {total:,}"
