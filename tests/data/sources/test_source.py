"""A split's rows: slices, first rows, the fingerprint of contents, remembered hashes, and what the Hub can't give."""

import hashlib
import json
import os
import time
from pathlib import Path

import datasets
import pytest

from smollit.data.sources.hashes import HASHES, file_hashes
from smollit.data.sources.mixture import load_source
from tests.data.sources.conftest import ROWS, rows_of, write

NUMBERS = [{"n": number} for number in range(40)]

# ---- slices


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("all[:5%]", [0, 1]),
        ("all[:50%]", range(20)),
        ("all[50%:]", range(20, 40)),
        ("all[-1:]", [39]),
        ("all[3:5]", [3, 4]),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_slices_of_one_file_make_train_and_val(tmp_path: Path, split: str, expected: list[int], ending: str) -> None:
    """Of 40 rows, 5 % are 2."""
    rows = rows_of(write(tmp_path / f"mine.{ending}", NUMBERS), split)
    assert [row["n"] for row in rows] == list(expected)


@pytest.mark.shared
def test_slices_of_published_rows(shared: Path) -> None:
    """1,240 rows, of which 5 % are 62."""
    source = load_source(str(shared / "data" / "ultrachat_200k"), "train_sft[:5%]")
    assert len(source.rows) == 62
    assert source.columns() == ["prompt", "prompt_id", "messages"]


@pytest.mark.parametrize("part", ["[:50%]", "[-2:]", "[:-1]"])
def test_slices_that_need_the_number_of_rows_can_not_be_streamed(tmp_path: Path, part: str) -> None:
    source = load_source(write(tmp_path / "mine.jsonl", NUMBERS), f"train{part}")
    with pytest.raises(ValueError, match=r"a stream's length is not known: .* give row numbers"):
        list(source.stream())


@pytest.mark.parametrize("split", ["", "train[", "train[:5x%]", "train[5%]", "a+b", "train [:5%]"])
def test_a_malformed_split_says_what_one_looks_like(tmp_path: Path, split: str) -> None:
    with pytest.raises(ValueError, match=r"a split must look like train_sft, train_sft\[:5%\]"):
        load_source(write(tmp_path / "mine.jsonl", NUMBERS), split)


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
    source = load_source(write(tmp_path / name, content), split)
    with pytest.raises(ValueError, match=r"split train.* of .*mine\.\w+ has no rows"):
        _ = source.rows


# ---- the first rows


def test_first_rows_name_the_columns_and_leave_malformed_lines_out(tmp_path: Path) -> None:
    source = load_source(write(tmp_path / "mine.jsonl", '{"b": 1}\noops\n[2]\n{"a": 3}\n'), "train")
    assert source.head(10) == [{"b": 1}, {"a": 3}]
    assert source.columns() == ["b", "a"]


def test_first_rows_that_are_missing_or_not_json_are_named(tmp_path: Path) -> None:
    """No first row can be read, so there is no column to speak of: the lines are what is wrong."""
    with pytest.raises(ValueError, match=r"split train\[:5%\] of .*mine\.jsonl has no rows"):
        load_source(write(tmp_path / "mine.jsonl", "\n\n"), "train[:5%]").columns()
    path = write(tmp_path / "mine.jsonl", '{"messages": [\nnot json\n')
    with pytest.raises(ValueError, match=r"fix these first:\n.*mine\.jsonl:1: not JSON.*\n.*mine\.jsonl:2: not JSON"):
        load_source(path, "train").columns()


def test_looking_does_not_read_to_the_end(tmp_path: Path) -> None:
    """The end of this file is broken: only who reads it all can know."""
    source = load_source(write(tmp_path / "mine.jsonl", b'{"a": 1}\n' * 1000 + b"\xff\n"), "train")
    assert source.columns() == ["a"]
    with pytest.raises(ValueError, match=r"mine\.jsonl:1001: not UTF-8"):
        _ = source.rows


# ---- the Hub


@pytest.mark.shared
def test_a_wrong_split_of_published_rows_names_those_that_exist(shared: Path) -> None:
    with pytest.raises(ValueError, match=r"has no split 'train_prefs'.*train_sft.*test_sft"):
        _ = load_source(str(shared / "data" / "ultrachat_200k"), "train_prefs").rows


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no files of split 'train'"):
        _ = load_source(str(tmp_path), "train").rows


@pytest.mark.parametrize("dataset", ["HuggingFaceH4/no-such-rows", "some/splits", "no-such-rows"])
def test_an_unreachable_hub_id_gives_one_sentence_with_a_way_out(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="could not load the data set") as caught:
        _ = load_source(dataset, "train").rows
    message = str(caught.value)
    assert f"`{dataset}`: not a local file or folder, and not found on the Hub" in message
    assert message.endswith("Check the name and the network, or set `data.dataset` to a local folder or file")
    assert "\n" not in message


# ---- fingerprints


# case: data-01
def test_the_fingerprint_is_that_of_content_and_slice(tmp_path: Path) -> None:
    """Same bytes elsewhere: the same; one more row, or another slice: another."""
    first = load_source(write(tmp_path / "one.jsonl", ROWS[:2]), "train").fingerprint
    again = load_source(write(tmp_path / "two.jsonl", ROWS[:2]), "train").fingerprint
    more = load_source(write(tmp_path / "three.jsonl", ROWS[:3]), "train").fingerprint
    part = load_source(str(tmp_path / "one.jsonl"), "train[:1]").fingerprint
    assert first == again
    assert len({first, more, part}) == 3


# case: data-01
def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "mine.jsonl", ROWS[:1])) == ROWS[:1]
    assert rows_of(write(tmp_path / "mine.jsonl", ROWS[1:])) == ROWS[1:]


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
