"""Rows of files of every kind and packing, and one sentence with file and line for each that can't be read."""

import contextlib
import json
import os
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from smollit.data.sources.files import KINDS
from smollit.data.sources.hub import quiet_datasets
from smollit.data.sources.mixture import load_source
from tests.data.sources.conftest import ROWS, pack, read_error, rows_of, text, write

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


@pytest.mark.parametrize("ending", KINDS)
def test_every_kind_of_file_gives_the_same_rows_loaded_streamed_and_looked_at(tmp_path: Path, ending: str) -> None:
    """Rows 2 and 3 of 6 by number; `head` looks at the start of the file."""
    path = write(tmp_path / f"mine{ending}", ROWS)
    assert rows_of(path) == ROWS
    assert rows_of(path, "train[2:4]") == ROWS[2:4]
    assert load_source(path, "train[2:4]").head(3) == ROWS[:3]
    assert sorted(load_source(path, "train").columns()) == ["chosen", "prompt", "rejected"]


def test_arrow_has_a_format_for_files_too(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(tmp_path / "mine.arrow", table.schema) as file:
        file.write_table(table)
    assert rows_of(str(tmp_path / "mine.arrow")) == ROWS


def test_values_of_mixed_types_survive_parquet(tmp_path: Path) -> None:
    """`datasets` stores them as JSON text; a reader without its features would give that text."""
    rows = Dataset.from_dict({"messages": [["a", {"b": 1}], [2]]}, on_mixed_types="use_json")
    rows.to_parquet(tmp_path / "mine.parquet")
    assert rows_of(str(tmp_path / "mine.parquet")) == [{"messages": ["a", {"b": 1}]}, {"messages": [2]}]


def test_concatenated_archives_are_read_to_the_end(tmp_path: Path) -> None:
    """`cat a.gz b.gz` is an archive, and so is the output of parallel packers."""
    for ending in (".jsonl.gz", ".jsonl.zst"):
        halves = [pack(text(rows, ending) + b"\n", ending) for rows in (ROWS[:2], ROWS[2:])]
        assert rows_of(write(tmp_path / f"mine{ending}", b"".join(halves))) == ROWS


# case: template-07
def test_one_json_file_may_mix_texts_and_parts(tmp_path: Path) -> None:
    """Arrow has one type per column: so lines stay text until each is parsed separately."""
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, CHAT["messages"][1]]}
    rows = [CHAT, parts, CHAT | {"more": 1}, {"messages": None}]
    assert rows_of(write(tmp_path / "mine.jsonl", rows)) == rows
    assert rows_of(write(tmp_path / "mine.json", rows)) == rows


def test_json_lines_may_have_blank_lines_and_odd_line_ends(tmp_path: Path) -> None:
    """U+2028 and U+0085 are no line ends inside JSON; a byte order mark and \\r\\n are the file's, not the rows'."""
    rows = [{"a": "a\u2028b\x85c"}, {"a": "d"}]
    first, second = (json.dumps(row, ensure_ascii=False) for row in rows)
    assert rows_of(write(tmp_path / "mine.jsonl", f"\ufeff{first}\n\n  \n{second}\r\n\n")) == rows
    assert rows_of(write(tmp_path / "lines.json", f"{first}\n{second}\n")) == rows  # the wrong ending
    assert rows_of(write(tmp_path / "one.json", json.dumps(rows[0], indent=2))) == rows[:1]


def test_csv_cells_are_text(tmp_path: Path) -> None:
    """Pandas would read 4 as a number, and NA and null as nothing; JSON text in a cell stays one cell."""
    cells = [("NA", "4"), ("null", "[1, 2]"), ('say "hi", now', "a\nb"), ("", json.dumps(CHAT))]
    rows = [{"prompt": first, "chosen": second} for first, second in cells]
    assert rows_of(write(tmp_path / "mine.csv", rows)) == rows


def test_csv_rows_may_be_short_and_cells_long(tmp_path: Path) -> None:
    """A missing last cell is null; a cell may be longer than the 131,072 characters of Python's default."""
    path = write(tmp_path / "mine.csv", "\ufeffa,b\n1\n\n" + "x" * 200_000 + ",2\n")
    assert rows_of(path) == [{"a": "1", "b": None}, {"a": "x" * 200_000, "b": "2"}]


# ---- what can't be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.json", '[{"a": 1},\n{"a":}]', r"mine\.json:2: not JSON"),
        ("mine.json", '[{"a": 1}, 5]', r"mine\.json: row 1 must be an object .*got int"),
        ("mine.jsonl", b'{"a": "b"}\n{"a": "\xff"}\n', r"mine\.jsonl:2: not UTF-8 \(byte 0xff at 8\)"),
        ("mine.json", f"{'[' * 2000}1{']' * 2000}", r"mine\.json:1: not JSON \(maximum recursion"),
        ("mine.jsonl.gz", b'{"a": "b"}\n\n{"a": "\xff"}\n', r"mine\.jsonl\.gz:3: not UTF-8 \(byte 0xff at 8\)"),
        ("mine.csv", b"prompt,chosen\na,b\n\xff,c\n", r"mine\.csv:3: not UTF-8"),
        ("mine.csv", "prompt,chosen\nyes, of course,fine\n", r"mine\.csv: rows have more cells than the header"),
        ("mine.csv", "a,b\n1,2\n\n3,4,5\n", r"quote text with commas \(line 4 has 3, the header 2\)"),
        ("mine.csv", 'a,b\n"never closed,1\n2,3\n', r"could not read .*mine\.csv: unexpected end of data \(line 3\)"),
        ("mine.csv", "a,b,a\n1,2,3\n", r"mine\.csv: its header names the column 'a' twice \(line 1\)"),
        ("mine.jsonl.gz", None, r"mine\.jsonl\.gz is not a whole \.gz file: .*\. Download it or compress it again"),
        ("mine.jsonl.zst", None, r"mine\.jsonl\.zst is not a whole \.zst file: .*\. Download it or compress it again"),
        ("mine.csv.gz", None, r"mine\.csv\.gz is not a whole \.gz file: .*\. Download it or compress it again"),
        ("mine.json.zst", None, r"mine\.json\.zst is not a whole \.zst file: .*\. Download it or compress it again"),
    ],
)
def test_broken_files_name_file_and_line(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    """Without content, the archive is truncated, or a text that only has the name of an archive."""
    path = tmp_path / name
    if content is None:
        whole = pack(text(ROWS * 50, name), name)
        contents: list[str | bytes] = [whole[: len(whole) // 2], b"plain text"]
    else:
        contents = [pack(content, name) if isinstance(content, bytes) else content]
    for each in contents:
        assert re.search(message, read_error(write(path, each)))


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_broken_tables_are_named(tmp_path: Path, ending: str) -> None:
    source = load_source(write(tmp_path / f"mine{ending}", "no table"), "train")
    for read in (lambda: source.rows, lambda: list(source.stream())):
        with pytest.raises(ValueError, match=rf"could not read .*mine{ending}: "):
            read()


def test_csv_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "a,b\n1,2\n")
    write(tmp_path / "2.csv", "a,c\n1,2\n")
    with pytest.raises(ValueError, match=r"2\.csv has the columns a, c, and .*1\.csv has a, b"):
        _ = load_source(f"{tmp_path}/*.csv", "train").rows


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
    assert len(load_source(write(tmp_path / "mine.jsonl", ROWS), "train").rows) == 6
    assert capfd.readouterr().err == ""


# case: F12
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pretty.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("list.jsonl", json.dumps(ROWS)),
        ("pretty.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("wrapped.json", json.dumps({"version": 1, "data": ROWS})),
        ("columns.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]})),
        ("pandas.json", json.dumps({name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]})),
        ("ids.json", json.dumps({f"id {n}": row for n, row in enumerate(ROWS)})),
        ("semicolons.csv", text(ROWS, ".csv").replace(b",", b";")),
        ("tabs.csv", text(ROWS, ".csv").replace(b",", b"\t")),
    ],
)
def test_rows_as_other_tools_write_them(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert rows_of(write(tmp_path / name, content)) == ROWS


def test_a_first_line_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", f'{{"a": {"[" * 2000}1{"]" * 2000}}}\n')
    with pytest.raises(ValueError, match=r"mine\.jsonl:1: not JSON \(maximum recursion"):
        load_source(path, "train").columns()


def test_columns_of_chats(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}] for answer in "ab"]
    written = json.dumps({"messages": chats, "id": [1, 2]})
    assert rows_of(write(tmp_path / "columns.json", written)) == [{"messages": chats[n], "id": n + 1} for n in (0, 1)]


def test_parquet_files_with_other_columns_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        datasets.Dataset.from_list([{name: 1}]).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"could not read .*a\.parquet, .*b\.parquet: their columns or types differ"):
        _ = load_source(f"{tmp_path}/*.parquet", "train").rows


def test_map_columns_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Spark and DuckDB write them; `datasets` has no type for them, at any depth."""
    kind = pa.map_(pa.string(), pa.string())
    columns = {"text": ["a", "b"], "meta": pa.array([[("k", "v")], []], kind)}
    columns["deep"] = pa.array([[{"x": [("k", "v")]}], []], pa.list_(pa.struct([("x", kind)])))
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    source = load_source(str(tmp_path / "mine.parquet"), "train")
    assert list(source.stream()) == source.rows.to_list() == [{"text": "a"}, {"text": "b"}]
    assert (
        caplog.text.count("has files with columns that hold maps, which can't be read and are left out: meta, deep")
        == 1
    )


def test_a_parquet_file_that_changes_and_keeps_its_time_is_read_again(tmp_path: Path) -> None:
    """As archives and reproducible builds set the times of files; a slice reads the same copy."""
    for word in ("one", "two"):
        datasets.Dataset.from_list([{"text": word}]).to_parquet(tmp_path / "mine.parquet")
        os.utime(tmp_path / "mine.parquet", (10**9, 10**9))
        for split in ("train", "train[:1]"):
            assert load_source(str(tmp_path / "mine.parquet"), split).rows["text"] == [word]


@pytest.mark.parametrize("way", ["parquet", "saved", "stream"])
def test_media_are_not_decoded(tmp_path: Path, way: str) -> None:
    """Bytes that are no image and no sound: whoever decodes them fails, and needs two packages more."""
    stored = {"bytes": b"none", "path": "a.wav"}
    rows = [{"text": "a", "clip": stored, "shots": [stored]}]
    files = datasets.Dataset.from_list(rows).cast_column("clip", datasets.Audio())
    files = files.cast_column("shots", datasets.List(datasets.Image()))
    if way == "saved":
        files.save_to_disk(tmp_path / "mine")
    else:
        files.to_parquet(tmp_path / "mine.parquet")
    source = load_source(str(tmp_path / ("mine" if way == "saved" else "mine.parquet")), "train")
    assert list(source.stream() if way == "stream" else source.rows) == rows


@pytest.mark.parametrize(
    "row", [{"prompt": "q", "data": [{"role": "user"}]}, {"completions": ["a", "b"], "prompt": "q"}]
)
def test_one_row_stays_one_row(tmp_path: Path, row: dict[str, object]) -> None:
    assert rows_of(write(tmp_path / "one.json", json.dumps(row))) == [row]
