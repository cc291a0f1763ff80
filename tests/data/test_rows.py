"""Which rows are used: filters, samples, repeats, configurations; counted in the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollit.data import ChatDataModule, PreferenceDataModule
from tests.data.conftest import Row, ready, whole

ROWS: list[Row] = [{"prompt": f"q{n % 4}", "completion": f"a{n % 8}", "score": n, "ok": n % 2 == 0} for n in range(12)]


def completions(module: ChatDataModule) -> list[str]:
    return [text.split("assistant\n")[1].removesuffix("<|im_end|>") for text in whole(module)]


# promise: row-filters
@pytest.mark.parametrize(
    ("settings", "kept", "left_out"),
    [
        ({"where": "ok and score < 7"}, ["a0", "a2", "a4", "a6"], {"`data.where`": 8}),
        # the same completion again from row 8 on; the same prompt from row 4 on
        ({"dedup": "row"}, [f"a{n}" for n in range(8)], {"`data.dedup`": 4}),
        ({"dedup": "prompt"}, ["a0", "a1", "a2", "a3"], {"`data.dedup`": 8}),
        # validation has rows 0 to 2: prompts q0, q1, q2
        ({"val_split": "all[:3]", "drop_val_rows": "prompt"}, ["a3", "a7", "a3"], {"`data.drop_val_rows`": 9}),
        ({"val_split": "all[:3]", "drop_val_rows": "row"}, [*"34567", "3"], {"`data.drop_val_rows`": 6}),
        ({"val_split": "all[:3]", "drop_val_rows": "prompt", "dedup": "row", "where": "score != 3"}, ["a7", "a3"],
         {"`data.where`": 1, "`data.dedup`": 3, "`data.drop_val_rows`": 6}),
    ],
)  # fmt: skip
def test_rows_are_left_out_and_counted(
    settings: Row,
    kept: list[str],
    left_out: dict[str, int],
    write: Callable[..., str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Row n has the prompt q(n % 4) and the completion a(n % 8). `where` is for all splits. Repeats are warned of where
    they are used."""
    data = ready(tmp_path, write(ROWS), max_dropped_share=0.5, **settings)
    assert completions(data) == [text if text.startswith("a") else f"a{text}" for text in kept]
    assert data.reports["train"].left_out == left_out
    assert sum(data.reports["train"].left_out.values()) + data.reports["train"].kept == len(ROWS)
    assert ("repeat the chat of an earlier row" in caplog.text) == (len(set(kept)) < len(kept))
    assert all(f"left out by {name}" in data.reports["train"].summary("train") for name in left_out)


def test_training_rows_that_stand_in_validation_too_are_named(
    write: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows 1 to 11 and 0 to 2 share rows 1 and 2, of which rows 9 and 10 are repeats; and other slices share none."""
    ready(tmp_path, write(ROWS), train_split="all[1:]", val_split="all[:3]")
    assert "5 of 11 training chats (45.5%) stand in validation too" in caplog.text
    assert "`data.drop_val_rows: row` leaves them out" in caplog.text
    caplog.clear()
    ready(tmp_path, write(ROWS[:8]), train_split="all[3:]", val_split="all[:3]")
    assert "stand in validation" not in caplog.text


# promise: row-filters
def test_max_rows_are_drawn_among_those_of_where_under_their_own_numbers(
    write: Callable[..., str], tmp_path: Path
) -> None:
    """3 of the 6 rows that are ok; streamed, the first 3. Validation has all 6."""
    settings = {"where": "ok", "max_rows": 3, "val_split": "all"}
    drawn = ready(tmp_path, write(ROWS), **settings)
    numbers = drawn.examples["train"].column("row").tolist()
    assert len(numbers) == 3 and all(n % 2 == 0 for n in numbers)
    assert completions(drawn) == [f"a{n % 8}" for n in numbers]
    assert len(drawn.examples["val"]) == 6
    stream = ready(tmp_path, write(ROWS), streaming=True, shuffle=False, **settings)
    assert sum(batch.num_examples for batch in stream.train_dataloader()) == 3


# promise: select
@pytest.mark.parametrize(
    ("by", "kept"), [("score_gap", [(0, 1), (1, -1), (1, 1)]), ("length_controlled_gap", [(-1, 1), (0, 1), (1, 1)])]
)
def test_the_best_pairs_by_their_scores(
    by: str, kept: list[tuple[int, int]], write: Callable[..., str], tmp_path: Path
) -> None:
    """Pair (d, e) has a gap of 5 + 3d + e, and its chosen response is 2d words longer. Half of the 6 stay: by the gap
    9 7 6 of 1 3 4 6 7 9; the line over the lengths is 5 + 3d, so what they do not explain is e. A pair without scores
    is never among the best, and counts as left out."""
    pairs = [(d, e) for d in (-1, 0, 1) for e in (-1, 1)]
    rows = [
        {"prompt": f"{d} {e}", "chosen": "yes" + " so" * (4 + 2 * d), "rejected": "no" + " so" * 4,
         "score_chosen": 5 + 3 * d + e, "score_rejected": 0}
        for d, e in pairs
    ]  # fmt: skip
    rows.append({"prompt": "none", "chosen": "a", "rejected": "b"})
    data = ready(tmp_path, write(rows), PreferenceDataModule, select=by, select_share=0.43)
    assert [pairs[number] for number in data.examples["train"].column("row")] == kept
    report = data.reports["train"]
    assert (report.kept, report.left_out) == (3, {f"`data.select: {by}`": 4})
    everything = ready(tmp_path, write(rows), PreferenceDataModule)
    assert data.examples["train"].keys != everything.examples["train"].keys  # a resumed run would be refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"select": "score_gap"},
            "`data.select: score_gap` needs a `data.select_share` above 0 and at most 1, got None",
        ),
        ({"select_share": 0.5}, "`data.select_share` has no effect without `data.select`"),
        ({"select": "score_gap", "select_share": 0.5}, "is a score of pairs, and these rows are chats"),
        ({"select": "score_gap", "select_share": 0.5, "streaming": True}, "`data.select` compares all rows"),
        ({"where": "scores > 3"}, "`data.where` reads the column 'scores', which split train of .* does not have"),
        ({"where": "score > 99"}, "`data.where: score > 99` is true for no row"),
        ({"val_split": "all", "drop_val_rows": "row"}, "every training row stands in validation too"),
        ({"streaming": True, "dedup": "row"}, "`data.streaming` has not all"),
        ({"subset": "en"}, "`data.subset` names a configuration, and .* is a file"),
        ({"revision": "main"}, "`data.revision` is for data sets on the Hub"),
    ],
)
def test_what_can_not_be_is_refused(
    settings: dict[str, Any], said: str, write: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        ready(tmp_path, write(ROWS), **settings)


# case: F9
def test_configurations_are_named(write: Callable[..., str], tmp_path: Path) -> None:
    """A folder as on the Hub, whose README.md lists two; a part may have its own. Without one, the error lists them."""
    folder = tmp_path / "set"
    for name in ("one", "two"):
        write([{"text": name}], f"set/files/{name}.jsonl")
    listed = [f"- config_name: {name}\n  data_files: files/{name}.jsonl\n" for name in ("one", "two")]
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n")
    assert whole(ready(tmp_path, str(folder), subset="two")) == ["two<|endoftext|>"]
    for subset, cause in ((None, "several configurations"), ("three", "no configuration 'three'")):
        with pytest.raises(ValueError, match=f"has {cause}: set `data.subset` to one of one, two"):
            ready(tmp_path, str(folder), subset=subset)


# ---- rows that become several


def test_a_converter_may_give_several_rows_or_none(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "a,b" -> two chats, "" -> none: counted, and no reason to refuse the run. Its errors name row and function."""
    source = "def split(row): return [{'prompt': 'q', 'completion': w} for w in row['words'].split(',') if w]\n"
    (tmp_path / "several_rows.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    path = write([{"words": text} for text in ("a,b", "", "c")])
    data = ready(tmp_path, path, convert="several_rows.split")
    assert completions(data) == ["a", "b", "c"]
    assert data.examples["train"].column("row").tolist() == [0, 0, 2]
    assert data.reports["train"].dropped == {"left out by `data.convert`": 1}
    stream = ready(tmp_path, path, convert="several_rows.split", streaming=True)
    assert sum(batch.num_examples for batch in stream.train_dataloader()) == 3
    rows = [*({"words": "a"} for _ in range(30)), {"word": "b"}]
    with pytest.raises(ValueError, match=r"row 30: `data.convert: several_rows.split` fails with KeyError"):
        ready(tmp_path, write(rows, "other.jsonl"), convert="several_rows.split", num_proc=2)


def test_pairs_of_one_row_share_its_number_in_a_mixture(write: Callable[..., str], tmp_path: Path) -> None:
    """3 responses of scores 2, 1, 0: pairs (2, 1), (2, 0), (1, 0). The next part's rows are counted after its 2."""
    rows = [{"prompt": f"q{n}", "answers": ["a", "b", "c"], "scores": [2, 1, 0]} for n in range(2)]
    columns = {"responses": "answers", "chosen_if": "highest scores"}
    data = ready(tmp_path, write(rows), PreferenceDataModule, columns=columns, pairs_of="all")
    examples = data.examples["train"]
    assert [examples[n]["row"] for n in range(6)] == [0, 0, 0, 1, 1, 1]
    assert examples.column("score_gap").tolist() == [1, 2, 1] * 2
