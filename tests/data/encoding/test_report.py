"""The report of a split: counts from Arrow columns, text for the console, JSON for the run folder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from smollit.data.encoding.counts import count_examples
from smollit.data.encoding.report import Report, verify_report
from smollit.data.formats.drop_reason import DropReason
from smollit.data.loaded import to_json, write_reports


def chat(length: int, trained: int = 1, full_length: int | None = None, **more: Any) -> dict[str, Any]:
    """The columns of one chat's example."""
    full = length if full_length is None else full_length
    return {
        "input_ids": [7] * length, "spans": [length - trained, length], "length": length, "full_length": full,
        "loss_tokens": trained, "truncated": full > length, "control": 0, "problem": "", "detail": "",
        "trailing": False, "digest": length,
    } | more  # fmt: skip


def pair(prompt: int, chosen: int, rejected: int, gap: float = math.nan, **more: Any) -> dict[str, Any]:
    """The columns of one pair's example."""
    return {
        "prompt_ids": [5] * prompt, "chosen_ids": [6] * chosen, "rejected_ids": [7] * rejected,
        "chosen_tokens": chosen,
        "length": prompt + chosen + rejected, "full_length": prompt + max(chosen, rejected),
        "loss_tokens": chosen + rejected, "truncated": False, "control": 0, "problem": "", "detail": "",
        "trailing": False, "digest": hash((prompt, chosen, rejected)), "score_gap": gap,
    } | more  # fmt: skip


def bad(problem: str, detail: str = "why") -> dict[str, Any]:
    """A dropped chat: no tokens."""
    return chat(0, 0) | {"spans": [], "problem": problem, "detail": detail, "digest": 0}


def report(rows: list[dict[str, Any]]) -> Report:
    return count_examples(Dataset.from_list([row | {"row": number} for number, row in enumerate(rows)]))


# case: mask-08
def test_the_summary_has_the_loss_tokens() -> None:
    """10 prompt and 4 response tokens: 4 / 14 = 28.6 %."""
    assert "train: 1 of 1 rows, loss tokens 4 / 14 (28.6%)" in report([chat(14, 4)]).summary("train")


# case: data-09
def test_the_summary_has_lengths_and_truncated_rows() -> None:
    """3, 5 and 50 tokens with max_length 10: lengths are those before truncation, and one row of three is truncated."""
    seen = report([chat(3), chat(5, digest=1), chat(10, full_length=50)])
    assert seen.lengths == {"p50": 5, "p90": 50, "p99": 50, "max": 50}
    assert "lengths p50 5, p90 50, p99 50, max 50, 1/3 truncated; 95% fit in 50" in seen.summary("x")
    assert (seen.tokens, seen.truncated) == (18, 1)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60))
@pytest.mark.slow
def test_keep95_is_the_smallest_length_that_keeps_95_percent_whole(lengths: list[int]) -> None:
    """By trying: keep95 tokens leave at least 95 % of the rows untruncated, and one token less does not."""
    seen = report([chat(1, full_length=length) for length in lengths])

    def whole(limit: int) -> int:
        return 100 * sum(length <= limit for length in lengths)

    assert whole(seen.keep95) >= 95 * len(lengths) > whole(seen.keep95 - 1)


def test_rows_that_are_dropped_for_their_length_count_among_the_lengths() -> None:
    """With `truncate: drop` long rows are dropped: `keep95` must still know them. A row without tokens is not one."""
    seen = report([chat(4), bad("too long") | {"full_length": 90}, bad("null content"), bad("null content")])
    assert (seen.lengths["p50"], seen.lengths["max"], seen.keep95, seen.kept) == (4, 90, 90, 1)


def test_dropped_rows_by_cause_with_three_examples_each() -> None:
    rows = [bad("empty text", f"detail {number}") for number in range(4)] + [chat(3), bad("unknown role")]
    seen = report(rows)
    assert seen.dropped == {"empty text": 4, "unknown role": 1}
    assert seen.examples == {
        "empty text": ["row 0: detail 0", "row 1: detail 1", "row 2: detail 2"],
        "unknown role": ["row 5: why"],
    }
    assert seen.drops()[0] == "4 of 6 rows dropped, empty text: row 0: detail 0; row 1: detail 1; row 2: detail 2"
    assert seen.dropped_fraction() == pytest.approx(5 / 6)


def test_rows_with_the_same_fault_are_named_together() -> None:
    (said,) = report([bad("a", "x: y"), bad("a", "z"), bad("a", "x: y")]).drops()
    assert said == "3 of 3 rows dropped, a: rows 0, 2: x: y; row 1: z"


def test_slices_add_up() -> None:
    """50,000 rows are read in several slices: each count is 6,250 times that of 8 rows, and three rows are named."""
    rows = [chat(3), bad("a"), bad("b"), chat(9, 2, 12), bad("a"), chat(3), bad("a"), bad("a", "last")]
    once, often = report(rows), report(rows * 6_250)
    assert (often.rows, often.kept, often.tokens) == (50_000, 6_250 * once.kept, 6_250 * once.tokens)
    assert often.dropped == {"a": 25_000, "b": 6_250} and often.examples["a"] == once.examples["a"]
    assert (often.lengths, often.keep95) == (once.lengths, once.keep95)


def test_a_selection_of_examples_is_counted_as_it_stands() -> None:
    """`select` keeps all rows in the table, and an index beside it."""
    rows = Dataset.from_list([chat(length) | {"row": length} for length in (3, 5, 50)])
    assert count_examples(rows.select([2, 0])).lengths["max"] == 50
    assert count_examples(rows.select([1, 0])).tokens == 8


def test_numbers_of_pairs() -> None:
    """Chosen 4, 2, 3 and rejected 1, 2, 6: means 3 and 3, one longer. Gaps 0, -1 and none."""
    seen = report([pair(5, 4, 1, 0.0), pair(6, 2, 2, -1.0), pair(7, 3, 6)])
    assert (seen.chosen_mean, seen.rejected_mean, seen.chosen_longer) == (3.0, 3.0, 1)
    assert (seen.scored, seen.ties, seen.reversed_scores) == (2, 1, 1)
    assert (seen.tokens, seen.loss_tokens, seen.lengths["max"]) == (36, 18, 13)
    assert "mean tokens: chosen 3.0, rejected 3.0; 1 of 2 scores are ties" in seen.summary("train")


def test_chats_have_no_numbers_of_pairs() -> None:
    seen = report([chat(3)])
    assert seen.chosen_mean is None
    assert "chosen" not in seen.summary("train")


def test_duplicates_are_told_apart_by_their_whole_digest() -> None:
    """Two digests that are one number as 64-bit floats: 2^60 and 2^60 + 1. Dropped rows are no duplicates."""
    near = [chat(3, digest=2**60), chat(4, digest=2**60 + 1)]
    assert report([*near, bad("a"), bad("a")]).duplicates == 0
    assert report([*near, near[0]]).duplicates == 1


def test_control_text_is_a_note() -> None:
    """Escaped text is no fault of the rows, but it is reported."""
    seen = report([chat(3, control=2), chat(4), bad("a") | {"control": 1}])
    assert seen.control == 1
    assert seen.notes()[0] == "1 of 2 rows (50.0%) spell control tokens in their text, which was escaped"
    assert seen.warnings("val")[0].startswith("val: ")


def concerns(bad_rows: int, of: int, other: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """Concerns about `of` rows, all different, of which some are `other`."""
    rows = [other] * bad_rows + [usual] * (of - bad_rows)
    return report([row | {"digest": number} for number, row in enumerate(rows)]).concerns()


SCORED = pair(5, 3, 3, 1.0)
CONCERNS = {
    "truncated": (chat(4, full_length=9), chat(4), 5, "6 of 100 rows (6.0%) are longer than `data.max_length`, and"),
    "too long": (bad(DropReason.TOO_LONG), chat(4), 5, "6 of 100 rows (6.0%) are longer than `data.max_length`"),
    "equal": (
        pair(1, 1, 1, problem=DropReason.IDENTICAL),
        SCORED,
        1,
        "2 of 100 pairs (2.0%) have the same text in both columns",
    ),
    "ties": (SCORED | {"score_gap": 0.0}, SCORED, 5, "6 of 100 scored pairs (6.0%) have equal scores"),
    "reversed": (SCORED | {"score_gap": -1.0}, SCORED, 1, "2 of 100 scored pairs (2.0%) have a rejected response with"),
    "longer": (
        pair(5, 40, 39),
        pair(5, 39, 39),
        60,
        "in 61 of 100 pairs (61.0%) the chosen response is the longer one",
    ),
}


@pytest.mark.parametrize("name", CONCERNS)
def test_a_concern_needs_more_than_its_fraction(name: str) -> None:
    """Silent up to the limit, and one row more gives a sentence with number, fraction and advice."""
    other, usual, limit, text = CONCERNS[name]
    assert concerns(limit, 100, other, usual) == []
    (said,) = concerns(limit + 1, 100, other, usual)
    assert said.startswith(text)


def test_chosen_much_longer_on_average() -> None:
    """One chosen response of 40 tokens among ten of 3: mean 6.7 against 3, although only one in ten is longer."""
    rows = [pair(5, 40 if number == 0 else 3, 3, digest=number) for number in range(10)]
    (said,) = report(rows).concerns()
    assert "in 1 of 10 pairs (10.0%)" in said and "mean 7 tokens, rejected 3" in said


def test_repeated_rows_are_a_concern() -> None:
    (said,) = report([chat(3), chat(3), chat(4)]).concerns()
    assert said.startswith("1 of 3 rows (33.3%) repeat the chat of an earlier row")


def test_rows_that_an_option_drops_are_no_reason_to_refuse() -> None:
    """8 of 10 are ties, dropped by `score_ties: drop`: fine. One more row that nobody asked to drop is a tenth."""
    ties = [pair(1, 1, 1, problem=DropReason.TIED, digest=number) for number in range(8)]
    seen = report([*ties, SCORED, pair(1, 1, 1, problem="empty response")])
    assert seen.dropped_fraction() == pytest.approx(0.1)
    verify_report(seen, "train", 0.1)
    with pytest.raises(ValueError, match="1 of 10 rows of split train can't be used") as error:
        verify_report(seen, "train", 0.09)
    assert str(error.value).endswith(
        "What to do: fix the rows, or raise `data.max_dropped_share` above 0.1 to continue without these rows"
    )
    with pytest.raises(ValueError, match=r"all 8 rows .*\n.*\nWhat to do: set `data.score_ties` to keep$"):
        verify_report(report(ties), "train", 1.0)


@pytest.mark.parametrize(
    ("cause", "option"), [(DropReason.CONTROL_TEXT_ERROR, "control_text"), (DropReason.TOO_LONG_ERROR, "truncate")]
)
def test_one_row_is_enough_where_an_option_says_error(cause: str, option: str) -> None:
    seen = report([*(chat(3, digest=number) for number in range(99)), bad(cause, "here")])
    with pytest.raises(ValueError, match="1 of 100 rows of split train can't be used:") as error:
        verify_report(seen, "train", 1.0)
    assert error.match(f"row 99: here\nWhat to do: .*`data.{option}`") and "max_dropped_share" not in str(error.value)


def test_a_split_without_rows_is_refused() -> None:
    """No division by the zero rows, and no quantile of nothing."""
    empty = count_examples(Dataset.from_list([chat(3) | {"row": 0}]).select([]))
    assert (empty.rows, empty.kept, empty.keep95, empty.concerns()) == (0, 0, 0, [])
    assert "0 of 0 rows" in empty.summary("train")
    with pytest.raises(ValueError, match="rows of split train can't be used"):
        verify_report(empty, "train", 0.1)


def test_reports_are_written_whole_into_the_folder(tmp_path: Path) -> None:
    """A second run replaces the first one's file, and no other file remains."""
    first, second = report([chat(3)]), report([chat(9, 2)])
    write_reports({"train_sft": first}, tmp_path / "run")
    path = write_reports({"train_sft": second, "test_sft": first}, tmp_path / "run")
    assert [file.name for file in path.parent.iterdir()] == ["data_report.json"]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert {split: Report(**values) for split, values in found.items()} == {"train_sft": second, "test_sft": first}
    assert path.read_text(encoding="utf-8") == to_json({"train_sft": second, "test_sft": first})
