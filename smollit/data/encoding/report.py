"""Report: the kept, changed and dropped rows of a split, as numbers and sentences, and when a split is refused."""

from dataclasses import dataclass, field

from smollit.data.formats.drop_reason import DropReason, what_to_do
from smollit.data.template.unprinted import EARLIER, OF_RESULTS

# Fractions above which a user is warned.
MAX_TRUNCATED = 0.05
MAX_IDENTICAL = 0.01
MAX_TIES = 0.05
MAX_REVERSED = 0.01
MAX_DUPLICATES = 0.01
MAX_LENGTH_RATIO = 1.2  # mean length of chosen over that of rejected
MAX_CHOSEN_LONGER = 0.6
WITHOUT_LOSS = " without loss"  # ends the names of what is not printed of turns that do not count in the loss
HARMLESS = ("id", OF_RESULTS, WITHOUT_LOSS)  # ends of names of what a template need not print


@dataclass
class Report:
    """Counts of the rows of one split: of kept rows, unless stated otherwise.

    Args:
        rows: Examples that were tried: one per row, or several of rows that become several.
        kept: Rows that became examples.
        truncated: Rows that lost turns or tokens to `max_length`.
        control: Rows with text that spells a control token.
        tokens: Tokens; for pairs of the prompt and both responses.
        loss_tokens: Loss tokens.
        lengths: p50, p90, p99 and max of the lengths before truncation, of all rows that have one; for pairs of the
            prompt and the longer response, which `max_length` is compared with.
        keep95: The `max_length` at which 95% of those rows are not truncated.
        duplicates: Rows that repeat an earlier row of the split; for pairs, its prompt.
        chosen_mean: Mean number of tokens of the chosen responses; null for chats.
        rejected_mean: Mean number of tokens of the rejected responses; null for chats.
        chosen_longer: Pairs whose chosen response is the longer one.
        scored: Pairs with scores.
        ties: Pairs with equal scores.
        reversed_scores: Pairs whose rejected response has the higher score.
        trailing: Rows that end with turns after their last response, which are not used.
        source_rows: Rows of the split, before a setting leaves some out.
        left_out: Number of rows that each setting leaves out.
        dropped: Number of dropped rows per reason.
        examples: Per reason, up to three "row N: what was wrong".
        unprinted: Number of rows by what they say and the chat template does not print, such as `tool_calls`.
        first_unprinted: The first row of each.
    """

    rows: int
    kept: int
    truncated: int
    control: int
    tokens: int
    loss_tokens: int
    lengths: dict[str, int]
    keep95: int
    duplicates: int
    chosen_mean: float | None = None
    rejected_mean: float | None = None
    chosen_longer: int = 0
    scored: int = 0
    ties: int = 0
    reversed_scores: int = 0
    trailing: int = 0
    source_rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unprinted: dict[str, int] = field(default_factory=dict)
    first_unprinted: dict[str, int] = field(default_factory=dict)

    def unrequested(self) -> int:
        """Rows that were dropped although no setting asks for it."""
        return sum(count for reason, count in self.dropped.items() if not DropReason(reason).is_requested)

    def dropped_fraction(self) -> float:
        """Fraction of rows, 0 to 1, that were dropped although no setting asks for it."""
        return self.unrequested() / max(self.rows, 1)

    def summary(self, split: str) -> str:
        """Rows, tokens and lengths in two lines; a third for pairs."""
        quantiles = ", ".join(f"{name} {value:,}" for name, value in self.lengths.items())
        out = "".join(f", {count:,} left out by {setting}" for setting, count in self.left_out.items())
        lines = [
            f"{split}: {self.kept:,} of {self.rows:,} rows{out}, loss tokens {self.loss_tokens:,} / {self.tokens:,}"
            f" ({self.loss_tokens / max(self.tokens, 1):.1%})",
            f"lengths {quantiles}, {self.truncated:,}/{self.kept:,} truncated; 95% fit in {self.keep95:,}",
        ]
        if self.kept and self.chosen_mean is not None and self.rejected_mean is not None:
            scores = f"; {self.ties:,} of {self.scored:,} scores are ties" if self.scored else ""
            lines.append(f"mean tokens: chosen {self.chosen_mean:.1f}, rejected {self.rejected_mean:.1f}{scores}")
        return "\n  ".join(lines)

    def warnings(self, split: str) -> list[str]:
        """The warnings for the user, one sentence each."""
        return [f"{split}: {line}" for line in [*self.concerns(), *self.notes()]]

    def notes(self) -> list[str]:
        """Changed and dropped rows: control text, and one line per drop reason."""
        control = f"{fraction(self.control, self.kept, 'rows')} spell control tokens in their text, which was escaped"
        trailing = f"{fraction(self.trailing, self.kept, 'rows')} end with turns after their last response: not used"
        changed = [*([control] if self.control else []), *([trailing] if self.trailing else [])]
        return [*changed, *self._unprinted(is_harmless=True), *self.drops()]

    def drops(self) -> list[str]:
        """One line per drop reason, most frequent first."""
        reasons = sorted(self.dropped.items(), key=lambda item: -item[1])
        return [
            f"{count:,} of {self.rows:,} rows dropped, {reason}: {_joined(self.examples[reason])}"
            for reason, count in reasons
        ]

    def concerns(self) -> list[str]:
        """What is likely to be wrong with the rows or the settings: number, fraction, and what to do."""
        identical = self.dropped.get(DropReason.IDENTICAL, 0) if self.kept else 0  # a split of nothing else is refused
        checks = [
            (self._too_long(), self.rows, MAX_TRUNCATED, "rows", self._length_advice()),
            (identical, self.rows, MAX_IDENTICAL, "pairs", IDENTICAL_ADVICE),
            (self.ties, self.scored, MAX_TIES, "scored pairs", TIES_ADVICE),
            (self.reversed_scores, self.scored, MAX_REVERSED, "scored pairs", self._reversed_advice()),
            (self.duplicates, self.kept, MAX_DUPLICATES, "rows", self._duplicates_advice()),
        ]
        found = [
            f"{fraction(count, total, noun)} {advice}"
            for count, total, limit, noun, advice in checks
            if count > limit * total
        ]
        return self._unprinted(is_harmless=False) + found + self._length_bias()

    def _unprinted(self, *, is_harmless: bool) -> list[str]:
        """What the template does not print: identifiers, and earlier turns without loss, are harmless."""
        return [
            f"{fraction(count, self.rows, 'rows')} have {name}, which the chat template does not print (first: row"
            f" {self.first_unprinted[name]}){'' if is_harmless else _unprinted_advice(name)}"
            for name, count in self.unprinted.items()
            if (name.endswith(HARMLESS)) == is_harmless
        ]

    def _reversed_advice(self) -> str:
        is_most = 2 * self.reversed_scores > self.scored
        return REVERSED_ADVICE + (". As these are most pairs, look whether the columns are swapped" if is_most else "")

    def _too_long(self) -> int:
        reasons = (DropReason.TOO_LONG, DropReason.PROMPT_TOO_LONG)
        return self.truncated + sum(self.dropped.get(reason, 0) for reason in reasons)

    def _length_advice(self) -> str:
        return (
            "are longer than `data.max_length`, and were truncated or dropped. A `data.max_length` of"
            f" {self.keep95:,} leaves 95% of the rows untruncated; `data.truncate` sets how the others are shortened"
        )

    def _duplicates_advice(self) -> str:
        what = "chat" if self.chosen_mean is None else "prompt"
        return (
            f"repeat the {what} of an earlier row, which is seen more often than the others. Check the step that made"
            " this data"
        )

    def _length_bias(self) -> list[str]:
        if self.chosen_mean is None or self.rejected_mean is None or not self.kept:
            return []
        ratio = self.chosen_mean / max(self.rejected_mean, 1.0)
        if ratio <= MAX_LENGTH_RATIO and self.chosen_longer <= MAX_CHOSEN_LONGER * self.kept:
            return []
        return [
            f"in {fraction(self.chosen_longer, self.kept, 'pairs')} the chosen response is the longer one (mean"
            f" {self.chosen_mean:.0f} tokens, rejected {self.rejected_mean:.0f}): the model may learn length instead of"
            " quality. Watch the length of responses during training, or use a loss that corrects for length"
        ]


def _unprinted_advice(name: str) -> str:
    """What to do about a key that the template does not print."""
    return EARLIER_ADVICE if EARLIER in name else UNPRINTED_ADVICE


UNPRINTED_ADVICE = (
    ": the model never sees it. Set `data.chat_template` to a template that prints it, or remove it from the rows"
)
EARLIER_ADVICE = (
    ": it prints that of the last turn only. `data.train_on: last` takes the turns without it out of the loss; a row"
    " for each turn trains all of them"
)
IDENTICAL_ADVICE = "have the same text in both columns, and were dropped. Check the step that made this data"
TIES_ADVICE = (
    "have equal scores, so which response is preferred is a guess. `data.score_ties: drop` drops them,"
    " `data.min_score_gap` requires a clear difference"
)
REVERSED_ADVICE = (
    "have a rejected response with the higher score: the scores are noisy, or rate something else than the preference."
    " `data.min_score_gap: 0` drops these pairs"
)


def verify_report(report: Report, split: str, max_dropped_share: float) -> None:
    """Refuse a split that can't be trained on.

    Raises:
        ValueError: If no row is left, all pairs are identical, a larger fraction of rows than allowed was dropped (not
            counting those that a setting asks to drop), or there is a row for which a setting refuses the run.
    """
    if report.kept == 0 and 2 * report.dropped.get(DropReason.IDENTICAL, 0) > report.rows:
        raise ValueError(
            f"in {_all_of(report.dropped[DropReason.IDENTICAL], report.rows)} pairs of split {split}, `chosen` and"
            " `rejected` are the same text. The loss would stay at ln 2 = 0.6931, and accuracies and margins would mean"
            " nothing. Check the step that made this data: it probably writes one response into both columns"
        )
    found = set(map(DropReason, report.dropped))
    fatal = {reason for reason in found if reason.is_fatal}
    if report.kept and not fatal and report.dropped_fraction() <= max_dropped_share:
        return
    count = report.unrequested() if report.kept else report.rows
    reasons = fatal or {reason for reason in found if not report.kept or not reason.is_requested}
    limit = "" if fatal else f", and `data.max_dropped_share` is {max_dropped_share:g}"
    raise ValueError(
        f"{_all_of(count, report.rows)} rows of split {split} can't be used{limit}:\n"
        + "\n".join([*report.drops(), what_to_do(reasons, report.kept, report.dropped_fraction())])
    )


def fraction(count: int, total: int, noun: str) -> str:
    """For example `12 of 60 rows (20.0%)`."""
    return f"{count:,} of {total:,} {noun} ({count / max(total, 1):.1%})"


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
