"""Files of every kind and packing, globs, folders that `datasets` saved, and hashes that are remembered."""

import csv
import gzip
import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from smollit.data.sources.files import ENDINGS, find_files, malformed_lines, parse_line
from smollit.data.sources.readers import RAW, iter_rows
from smollit.data.sources.source import HASHES, file_hashes, load_source

ROWS = [{"prompt": f"p{number}", "chosen": "4", "rejected": "NA"} for number in range(6)]


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def pack(content: bytes, ending: str) -> bytes:
    """Content as a .gz, .zst or plain file. The zstd frame is written by pyarrow; others' are read in the same way."""
    if ending.endswith(".gz"):
        return gzip.compress(content)
    return pa.Codec("zstd").compress(content, asbytes=True) if ending.endswith(".zst") else content


def text(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ".csv" in ending:
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue().encode()
    return (json.dumps(rows) if ".jsonl" not in ending else "\n".join(map(json.dumps, rows))).encode()


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as a file of the kind that the path's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as file:
            file.write_table(table)
    else:
        path.write_bytes(pack(text(rows, path.name), path.suffix))
    return str(path)


def decoded(rows: Any) -> list[dict[str, Any]]:
    return [parse_line(row[RAW]) if RAW in row else row for row in rows]


# ---- every kind, three ways to its rows


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_of_file_gives_the_same_rows_loaded_streamed_and_looked_at(tmp_path: Path, ending: str) -> None:
    """Rows 2 and 3 of 6 by number; `head` looks at the start of the file."""
    path = write(tmp_path / f"mine{ending}", ROWS)
    whole, piece = load_source(path, "train"), load_source(path, "train[2:4]")
    assert decoded(whole.rows) == decoded(whole.stream()) == ROWS
    assert decoded(piece.rows) == decoded(piece.stream()) == ROWS[2:4]
    assert piece.head(3) == ROWS[:3]
    assert sorted(whole.columns()) == ["chosen", "prompt", "rejected"]


def test_arrow_has_a_format_for_files_too(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(tmp_path / "mine.arrow", table.schema) as file:
        file.write_table(table)
    source = load_source(str(tmp_path / "mine.arrow"), "train")
    assert source.rows.to_list() == list(source.stream()) == ROWS


def test_values_of_mixed_types_survive_parquet_in_both_ways(tmp_path: Path) -> None:
    """`datasets` stores them as JSON text; a reader without its features would give that text."""
    rows = Dataset.from_dict({"messages": [["a", {"b": 1}], [2]]}, on_mixed_types="use_json")
    rows.to_parquet(tmp_path / "mine.parquet")
    source = load_source(str(tmp_path / "mine.parquet"), "train")
    assert source.rows.to_list() == list(source.stream()) == [{"messages": ["a", {"b": 1}]}, {"messages": [2]}]


def test_parts_of_an_archive_that_stand_one_behind_the_other_are_all_read(tmp_path: Path) -> None:
    """`cat a.gz b.gz` is an archive, and so is the output of parallel packers."""
    for ending in (".jsonl.gz", ".jsonl.zst"):
        halves = [pack(text(rows, ending) + b"\n", ending) for rows in (ROWS[:2], ROWS[2:])]
        (tmp_path / f"mine{ending}").write_bytes(b"".join(halves))
        assert decoded(load_source(str(tmp_path / f"mine{ending}"), "train").rows) == ROWS


def test_folders_of_packed_shards_have_splits(tmp_path: Path) -> None:
    for shard in range(2):
        write(tmp_path / "data" / f"train-{shard:05}-of-00002.jsonl.zst", ROWS[3 * shard : 3 * shard + 3])
    write(tmp_path / "data" / "test.jsonl.zst", ROWS[:1])
    assert decoded(load_source(str(tmp_path), "train").rows) == ROWS
    assert decoded(load_source(str(tmp_path), "train[-1:]").rows) == ROWS[-1:]
    with pytest.raises(ValueError, match="no split 'val': its splits are test, train"):
        load_source(str(tmp_path), "val")


# ---- globs


def test_a_glob_is_the_files_that_it_matches_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b" / "deep" / "2.jsonl.gz", ROWS[4:])
    write(tmp_path / "b" / "1.jsonl.gz", ROWS[2:4])
    write(tmp_path / "a.jsonl", ROWS[:2])  # packed or not, lines are lines
    assert decoded(load_source(f"{tmp_path}/**/*.jsonl*", "any[:50%]").rows) == ROWS[:3]
    assert [file.name for file in find_files(f"{tmp_path}/b/*.gz", "train")] == ["1.jsonl.gz"]
    assert [file.name for file in find_files(f"{tmp_path}/b/**", "train")] == ["1.jsonl.gz", "2.jsonl.gz"]


def test_a_glob_without_files_and_one_with_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file matches it: check the path"):
        load_source(f"{tmp_path}/*.jsonl", "train")
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(ValueError, match=r"matches .*README\.md, but only \.jsonl, "):
        load_source(f"{tmp_path}/*", "train")


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    assert decoded(load_source(write(tmp_path / "mine[1].jsonl", ROWS), "train").rows) == ROWS


# ---- saved by datasets


def test_a_saved_data_set_is_read_under_any_split_and_in_order(tmp_path: Path) -> None:
    """Rows that were shuffled before saving; in 3 files; a number format is none of ours."""
    shuffled = Dataset.from_list(ROWS).select([5, 0, 4, 1, 3, 2]).with_format("numpy")
    shuffled.save_to_disk(tmp_path / "saved", num_shards=3)
    source = load_source(str(tmp_path / "saved"), "train[:4]")
    expected = [ROWS[number] for number in (5, 0, 4, 1)]
    assert source.rows.to_list() == list(source.stream()) == expected
    assert len(source.files) == 3


def test_a_saved_dict_gives_the_split(tmp_path: Path) -> None:
    parts = {"train": Dataset.from_list(ROWS[:4]), "test": Dataset.from_list(ROWS[4:])}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert load_source(str(tmp_path / "saved"), "test").rows.to_list() == ROWS[4:]
    with pytest.raises(ValueError, match=r"no split 'val': its splits are test, train"):
        load_source(str(tmp_path / "saved"), "val")


def test_a_saved_folder_that_lacks_a_file_names_it(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    next((tmp_path / "saved").glob("*-00001-*")).unlink()
    with pytest.raises(ValueError, match=r"data-00001-of-00002\.arrow is missing: the folder was not copied whole"):
        load_source(str(tmp_path / "saved"), "train")


# ---- broken files


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".csv.gz", ".json.zst"])
def test_broken_archives_get_a_sentence(tmp_path: Path, ending: str) -> None:
    """Cut short in the middle, and a text that was only given the name of an archive."""
    whole = pack(text(ROWS * 50, ending), ending)
    for content in (whole[: len(whole) // 2], b"plain text"):
        path = tmp_path / f"{len(content)}{ending}"
        path.write_bytes(content)
        source = load_source(str(path), "train")
        for read in (lambda source=source: source.rows, lambda source=source: list(source.stream())):
            with pytest.raises(ValueError, match=rf"{path.name} is not a whole \.\w+ file: .*\. Download it or comp"):
                read()


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_lines_inside_archives_have_their_numbers(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mine{ending}"
    path.write_bytes(pack(b'{"a": 1}\n\noops\n', ending))
    assert [line.split(": ")[0] for line in malformed_lines((path,))] == [f"{path}:3"]
    path.write_bytes(pack(b'{"a": 1}\n{"a": "\xff"}\n', ending))
    with pytest.raises(ValueError, match=rf"mine{ending}:2: not UTF-8 \(byte 0xff at 8\)"):
        list(load_source(str(path), "train").stream())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a,b\n"never closed,1\n2,3\n', r"could not read .*mine\.csv: unexpected end of data \(line 3\)"),
        ("a,b,a\n1,2,3\n", r"mine\.csv: its header names the column 'a' twice \(line 1\)"),
        ("a,b\n1,2\n\n3,4,5\n", r"quote text with commas \(line 4 has 3, the header 2\)"),
    ],
)
def test_broken_csv_names_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        list(iter_rows((tmp_path / "mine.csv",)))
    with pytest.raises(ValueError, match=message):
        _ = load_source(str(tmp_path / "mine.csv"), "train").rows


def test_csv_rows_may_be_short_and_cells_long(tmp_path: Path) -> None:
    """A missing last cell is null; a cell may be longer than the 131,072 characters of Python's default."""
    (tmp_path / "mine.csv").write_text("﻿a,b\n1\n\n" + "x" * 200_000 + ",2\n")
    rows = load_source(str(tmp_path / "mine.csv"), "train").rows.to_list()
    assert rows == [{"a": "1", "b": None}, {"a": "x" * 200_000, "b": "2"}]


def test_csv_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("a,c\n1,2\n")
    with pytest.raises(ValueError, match=r"2\.csv has the columns a, c, and .*1\.csv has a, b"):
        _ = load_source(f"{tmp_path}/*.csv", "train").rows


def test_broken_tables_are_named_when_streamed(tmp_path: Path) -> None:
    for ending in (".parquet", ".arrow"):
        path = tmp_path / f"mine{ending}"
        path.write_text("no table")
        with pytest.raises(ValueError, match=rf"could not read .*mine{ending}: "):
            list(load_source(str(path), "train").stream())
        with pytest.raises(ValueError, match=rf"could not read .*mine{ending}: "):
            _ = load_source(str(path), "train").rows


@pytest.mark.parametrize("part", ["[:50%]", "[-2:]", "[:-1]"])
def test_slices_that_need_the_number_of_rows_can_not_be_streamed(tmp_path: Path, part: str) -> None:
    source = load_source(write(tmp_path / "mine.jsonl", ROWS), f"train{part}")
    with pytest.raises(ValueError, match=r"a stream's length is not known: .* give row numbers"):
        list(source.stream())


# ---- looking at the first rows


def test_head_leaves_malformed_lines_out(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"a": 1}\noops\n[2]\n{"a": 3}\n')
    assert load_source(str(tmp_path / "mine.jsonl"), "train").head(10) == [{"a": 1}, {"a": 3}]


def test_head_of_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"split train\[:5%\] of .*mine\.jsonl has no rows"):
        load_source(str(tmp_path / "mine.jsonl"), "train[:5%]").columns()


def test_looking_does_not_read_to_the_end(tmp_path: Path) -> None:
    """The end of this file is broken: only who reads it all can know."""
    (tmp_path / "mine.jsonl").write_bytes(b'{"a": 1}\n' * 1000 + b"\xff\n")
    source = load_source(str(tmp_path / "mine.jsonl"), "train")
    assert source.columns() == ["a"]
    with pytest.raises(ValueError, match=r"mine\.jsonl:1001: not UTF-8"):
        _ = source.rows


# ---- hashes that are remembered


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is 10 s ahead: the files that a test writes have been unchanged for a while."""
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 10**10)


def forge(cache_dir: Path) -> None:
    """Replace all remembered hashes by zeros: where these are found again, no file was read."""
    memory = json.loads((cache_dir / HASHES).read_text())
    (cache_dir / HASHES).write_text(json.dumps({name: [*entry[:-1], "00"] for name, entry in memory.items()}))


@pytest.mark.usefixtures("later")
def test_an_unchanged_file_is_hashed_once(tmp_path: Path) -> None:
    """The second time, the hash is the remembered one, forged here; without a folder nothing is remembered."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        file_hashes([tmp_path / name], tmp_path / "cache")  # the entry of `a` stays when that of `b` comes
    forge(tmp_path / "cache")
    assert file_hashes([tmp_path / "a", tmp_path / "b"], tmp_path / "cache") == ["00", "00"]
    assert file_hashes([tmp_path / "a"], None) == [hashlib.sha256(b"a").hexdigest()]


@pytest.mark.usefixtures("later")
def test_changed_files_are_hashed_again(tmp_path: Path) -> None:
    """Another size; the same size and another time; and the same size with the old time put back."""
    file = tmp_path / "a.jsonl"
    for content, modified in (("1", 0), ("22", 0), ("33", 1), ("44", 1)):
        file.write_text(content)
        os.utime(file, ns=(10**18, 10**18 + modified))
        assert file_hashes([file], tmp_path / "cache") == [hashlib.sha256(content.encode()).hexdigest()]


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    """It may change again within one tick of the disk's clock."""
    (tmp_path / "a.jsonl").write_text("1")
    file_hashes([tmp_path / "a.jsonl"], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("memory", ["", "[1]", '{"x": 3}', "{"])
def test_a_memory_that_is_broken_is_replaced(tmp_path: Path, memory: str) -> None:
    (tmp_path / "a.jsonl").write_text("1")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / HASHES).write_text(memory)
    assert file_hashes([tmp_path / "a.jsonl"], tmp_path / "cache") == file_hashes([tmp_path / "a.jsonl"], None)
    forge(tmp_path / "cache")
    assert file_hashes([tmp_path / "a.jsonl"], tmp_path / "cache") == ["00"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [HASHES]  # no half-written file is left
