"""Rows from files, folders and the hub, and one clear sentence for each way that they can't be had."""

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from smollit.data.sources.files import malformed_lines, parse_line
from smollit.data.sources.readers import RAW, quiet_datasets
from smollit.data.sources.source import load_source


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]}


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows_of(dataset: str, split: str = "train") -> list[dict[str, Any]]:
    rows = load_source(dataset, split).rows
    return [parse_line(line) for line in rows[RAW]] if RAW in rows.column_names else rows.to_list()


# ---- kinds of files


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_all_kinds_of_files_give_the_same_chats(tmp_path: Path, ending: str) -> None:
    rows, path = [chat("a"), chat("b")], tmp_path / f"mine.{ending}"
    if ending == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        write(path, lines(rows) if ending == "jsonl" else json.dumps(rows, indent=1))
    assert rows_of(str(path)) == rows


def test_csv_cells_are_text(tmp_path: Path) -> None:
    """Pandas would read 4 as a number, and NA and null as nothing; JSON text in a cell stays one cell."""
    rows = [pair("NA", "4", "5"), pair("null", "[1, 2]", ""), pair('say "hi", now', "a\nb", json.dumps(chat("x")))]
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert rows_of(str(tmp_path / "mine.csv")) == rows


# case: template-07
def test_one_json_file_may_mix_texts_and_parts(tmp_path: Path) -> None:
    """Arrow has one type per column, and fails on these: so lines stay text until each is parsed by itself."""
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *chat("a")["messages"][1:]]}
    rows = [chat("a"), parts, chat("b") | {"more": 1}]
    assert rows_of(write(tmp_path / "mine.jsonl", lines(rows))) == rows
    assert rows_of(write(tmp_path / "mine.json", json.dumps(rows))) == rows


def test_json_lines_may_have_blank_lines_and_odd_line_ends(tmp_path: Path) -> None:
    """U+2028 and U+0085 are no line ends inside JSON; a byte order mark and \\r\\n are the file's, not the rows'."""
    rows = [chat("a\u2028b\x85c"), chat("d")]
    text = "\ufeff" + lines(rows[:1]) + "\n  \n" + lines(rows[1:]).replace("\n", "\r\n") + "\n"
    assert rows_of(write(tmp_path / "mine.jsonl", text)) == rows


def test_json_lines_under_the_ending_json_are_read(tmp_path: Path) -> None:
    rows = [chat("a"), chat("b")]
    assert rows_of(write(tmp_path / "mine.json", lines(rows))) == rows
    assert rows_of(write(tmp_path / "one.json", json.dumps(rows[0], indent=2))) == rows[:1]


# ---- splits


@pytest.mark.parametrize(("split", "expected"), [("all[:50%]", [0, 1]), ("all[50%:]", [2, 3]), ("all[-1:]", [3])])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_slices_of_one_file_make_train_and_val(tmp_path: Path, split: str, expected: list[int], ending: str) -> None:
    """4 rows: halves, and the last one."""
    rows = [{"n": number} for number in range(4)]
    path = write(tmp_path / f"mine.{ending}", lines(rows))
    assert [row["n"] for row in rows_of(path, split)] == expected


def test_slices_of_a_folder(tmp_path: Path) -> None:
    """5 % of 40 rows are 2; shards are read in order; `train_sft_old` is another split."""
    for shard in range(2):
        rows = [{"n": 20 * shard + number} for number in range(20)]
        write(tmp_path / "data" / f"train_sft-{shard:05}-of-00002.jsonl", lines(rows))
    write(tmp_path / "data" / "train_sft_old.jsonl", lines([{"n": 99}]))
    assert [row["n"] for row in rows_of(str(tmp_path), "train_sft[:5%]")] == [0, 1]
    assert [row["n"] for row in rows_of(str(tmp_path), "train_sft")] == list(range(40))


@pytest.mark.shared
def test_slices_of_published_rows(shared: Path) -> None:
    """1,240 rows, of which 5 % are 62."""
    source = load_source(str(shared / "data" / "ultrachat_200k"), "train_sft[:5%]")
    assert len(source.rows) == 62
    assert source.columns() == ["prompt", "prompt_id", "messages"]


def test_a_wrong_split_names_those_that_exist(tmp_path: Path) -> None:
    """Left to itself, datasets would give `train_sft` for `train`."""
    for split in ("train_sft", "test_sft"):
        write(tmp_path / f"{split}.jsonl", lines([chat("a")]))
    with pytest.raises(ValueError, match="no split 'train': its splits are test_sft, train_sft"):
        load_source(str(tmp_path), "train")


@pytest.mark.shared
def test_a_wrong_split_of_published_rows_names_those_that_exist(shared: Path) -> None:
    with pytest.raises(ValueError, match=r"has no split 'train_prefs'.*train_sft.*test_sft"):
        _ = load_source(str(shared / "data" / "ultrachat_200k"), "train_prefs").rows


@pytest.mark.parametrize("split", ["", "train[", "train[:5x%]", "train[5%]", "a+b", "train [:5%]"])
def test_a_malformed_split_says_what_one_looks_like(tmp_path: Path, split: str) -> None:
    with pytest.raises(ValueError, match=r"a split must look like train_sft, train_sft\[:5%\]"):
        load_source(write(tmp_path / "mine.jsonl", lines([chat("a")])), split)


# ---- what can't be read


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_an_empty_file_is_named(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ValueError, match=rf"mine\.{ending} is empty"):
        load_source(write(tmp_path / f"mine.{ending}", ""), "train")


@pytest.mark.parametrize(
    ("name", "content", "split"),
    [
        ("mine.jsonl", "\n  \n", "train"),
        ("mine.json", "[]", "train"),
        ("mine.csv", "prompt,chosen\n", "train"),
        ("mine.jsonl", '{"a": 1}\n', "train[:0]"),
        ("mine.json", '[{"a": 1}]', "train[5:]"),
    ],
)
def test_a_split_without_rows_is_named(tmp_path: Path, name: str, content: str, split: str) -> None:
    with pytest.raises(ValueError, match=r"split train.* has no rows"):
        _ = load_source(write(tmp_path / name, content), split).rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.json", '[{"a": 1},\n{"a":}]', r"mine\.json:2: not JSON"),
        ("mine.json", '[{"a": 1}, 5]', r"mine\.json: row 1 must be an object .*got int"),
        ("mine.jsonl", b'{"a": "b"}\n{"a": "\xff"}\n', r"mine\.jsonl:2: not UTF-8 \(byte 0xff at 8\)"),
        ("mine.csv", b"prompt,chosen\na,b\n\xff,c\n", r"mine\.csv:3: not UTF-8"),
        ("mine.csv", "a,b\n1,2\n1,2,3\n", r"could not read .*mine\.csv: .*line 3"),
        ("mine.csv", "prompt,chosen\nyes, of course,fine\n", r"mine\.csv: rows have more cells than the header"),
        ("mine.parquet", "no parquet", r"could not read .*mine\.parquet"),
        ("mine.txt", "a", r"only \.jsonl, \.json, \.csv, \.parquet, \.arrow files .*can be read"),
    ],
)
def test_broken_files_name_file_and_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = load_source(write(tmp_path / name, content), "train").rows


def test_malformed_lines_are_named_with_their_numbers(tmp_path: Path) -> None:
    """Lines 2, 4 and 5 of 5; line 3 is blank."""
    path = Path(write(tmp_path / "mine.jsonl", '{"a": 1}\n{"a":\n\n[1]\noops\n'))
    first, second, third = malformed_lines((path,))
    assert first.startswith(f"{path}:2: not JSON (Expecting value at column ")
    assert second == f"{path}:4: expected an object {{...}}, got list"
    assert third == f"{path}:5: not JSON (Expecting value at column 1)"


def test_files_of_several_kinds_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", lines([chat("a")]))
    write(tmp_path / "train.csv", "a\n1\n")
    with pytest.raises(ValueError, match=r"of several kinds: .*train\.csv, .*train\.jsonl"):
        load_source(str(tmp_path), "train")


@pytest.mark.parametrize("dataset", ["/no/such/folder", "./none", "none.jsonl", "a/b/c", "~/no-such-folder"])
def test_a_missing_path_says_so_without_asking_the_hub(dataset: str) -> None:
    with pytest.raises(ValueError, match="there is no such file or folder: check the path"):
        load_source(dataset, "train")


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no files of split 'train'"):
        _ = load_source(str(tmp_path), "train").rows


@pytest.mark.parametrize("dataset", ["HuggingFaceH4/no-such-rows", "some/splits", "no-such-rows"])
def test_an_unreachable_hub_id_gives_one_sentence_with_a_way_out(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="could not load the data set") as caught:
        _ = load_source(dataset, "train").rows
    message = str(caught.value)
    assert dataset in message
    assert message.endswith("Check the name and the network, or set `data.dataset` to a local folder or file")
    assert "\n" not in message


# ---- what a source is


# case: data-01
def test_the_fingerprint_is_that_of_content_and_slice(tmp_path: Path) -> None:
    """Same bytes elsewhere: the same; one more row, or another slice: another."""
    rows = [chat("a"), chat("b")]
    first = load_source(write(tmp_path / "one.jsonl", lines(rows)), "train").fingerprint
    again = load_source(write(tmp_path / "two.jsonl", lines(rows)), "train").fingerprint
    more = load_source(write(tmp_path / "three.jsonl", lines([*rows, chat("c")])), "train").fingerprint
    part = load_source(str(tmp_path / "one.jsonl"), "train[:1]").fingerprint
    assert first == again
    assert len({first, more, part}) == 3


# case: data-01
def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", lines([chat("a")]))
    assert rows_of(path) == [chat("a")]
    write(tmp_path / "mine.jsonl", lines([chat("b"), chat("c")]))
    assert rows_of(path) == [chat("b"), chat("c")]


def test_columns_are_known_before_anything_is_tokenised(tmp_path: Path) -> None:
    source = load_source(write(tmp_path / "mine.jsonl", lines([{"b": 1}, {"a": 1}]) + "oops\n"), "train")
    assert source.columns() == ["a", "b"]


@pytest.mark.parametrize("on", [True, False])
def test_progress_bars_are_off_inside_and_as_before_outside(on: bool) -> None:
    were_off = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if on else datasets.disable_progress_bars)()
    try:
        with contextlib.suppress(KeyError), quiet_datasets():
            assert datasets.are_progress_bars_disabled()
            raise KeyError
        assert datasets.are_progress_bars_disabled() is not on
    finally:
        (datasets.disable_progress_bars if were_off else datasets.enable_progress_bars)()


def test_reading_shows_no_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(load_source(write(tmp_path / "mine.jsonl", lines([chat("a"), chat("b")])), "train").rows) == 2
    assert capfd.readouterr().err == ""


def test_a_file_without_any_json_is_named_with_its_lines(tmp_path: Path) -> None:
    """No first row can be read, so there is no column to speak of: the lines are what is wrong."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"messages": [\nnot json\n')
    with pytest.raises(ValueError, match=r"fix these first:\n.*mine\.jsonl:1: not JSON.*\n.*mine\.jsonl:2: not JSON"):
        load_source(str(path), "train").columns()
