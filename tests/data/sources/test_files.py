"""Which files a data set's name means: files, globs, folders, URLs; and what it can't mean."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from datasets import Dataset, DatasetDict, load_dataset

from smollit.data.sources.files import find_files
from smollit.data.sources.json_text import malformed_lines
from smollit.data.sources.mixture import load_source
from tests.data.sources.conftest import ROWS, pack, rows_of, write

# ---- folders and globs


@pytest.mark.parametrize("ending", ["jsonl.zst", "parquet"])
def test_folders_of_shards_have_splits(tmp_path: Path, ending: str) -> None:
    """Shards are read in order; `train_old` is another split."""
    for shard in range(2):
        write(tmp_path / "data" / f"train-{shard:05}-of-00002.{ending}", ROWS[3 * shard : 3 * shard + 3])
    write(tmp_path / "data" / f"test.{ending}", ROWS[:1])
    write(tmp_path / "data" / f"train_old.{ending}", ROWS[:2])
    assert rows_of(str(tmp_path)) == ROWS
    assert rows_of(str(tmp_path), "train[-1:]") == ROWS[-1:]


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (["train", "train_1", "train_2", "test"], "train", ["train", "train_1", "train_2"]),
        (["data/train_0", "data/train_1", "data/test_0"], "train", ["data/train_0", "data/train_1"]),
        (["val", "val-hard"], "val", ["val"]),
        (["train_sft", "train_sft2"], "train_sft", ["train_sft"]),
        (["a", "b"], "train", ["a", "b"]),
        (["my_train_file", "dev"], "validation", ["dev"]),
        (["train", "train_old", "validation"], "train", ["train"]),
    ],
)
def test_folders_are_read_as_datasets_reads_them(
    tmp_path: Path, names: list[str], split: str, found: list[str]
) -> None:
    """Its own rows are the answer, but for `train_old`, another split, and for splits that it does not know."""
    for number, name in enumerate(names):
        write(tmp_path / "rows" / f"{name}.jsonl", ROWS[number : number + 1])
    assert rows_of(str(tmp_path / "rows"), split) == [ROWS[names.index(name)] for name in found]
    if "train_old" not in names and split in ("train", "validation"):
        assert load_dataset(str(tmp_path / "rows"), split=split).to_list() == rows_of(str(tmp_path / "rows"), split)


def test_a_folder_that_datasets_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "train" / "more.jsonl", ROWS)
    with pytest.raises(
        ValueError, match=r"has .*train\.jsonl, and datasets would read .*more\.jsonl: set `data.dataset`"
    ):
        load_source(str(tmp_path), "train")


def test_a_wrong_split_names_those_that_exist(tmp_path: Path) -> None:
    """Left to itself, datasets would give `train_sft` for `train`."""
    for split in ("train_sft", "test_sft"):
        write(tmp_path / f"{split}.jsonl", ROWS)
    with pytest.raises(ValueError, match="no split 'train': its splits are test_sft, train_sft"):
        load_source(str(tmp_path), "train")


def test_a_glob_is_the_files_that_it_matches_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b" / "deep" / "2.jsonl.gz", ROWS[4:])
    write(tmp_path / "b" / "1.jsonl.gz", ROWS[2:4])
    write(tmp_path / "a.jsonl", ROWS[:2])  # packed or not, lines are lines
    assert rows_of(f"{tmp_path}/**/*.jsonl*", "any[:50%]") == ROWS[:3]
    assert [file.name for file in find_files(f"{tmp_path}/b/*.gz", "train")] == ["1.jsonl.gz"]
    assert [file.name for file in find_files(f"{tmp_path}/b/**", "train")] == ["1.jsonl.gz", "2.jsonl.gz"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer.*`git lfs pull`"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html></html>", "a web page"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16 text: convert it, as with iconv -f utf-16"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "a gzip archive: its name must end in .gz"),
        ("a.jsonl.gz", b"PK\x03\x04", "a zip archive: unpack it"),
        ("a.csv", b"PAR1\x15", "a parquet file: its name must end in .parquet"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is {said}"):
        load_source(str(tmp_path / name), "train")


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "mine[1].jsonl", ROWS)) == ROWS


def test_a_glob_without_files_and_one_with_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file matches it: check the path"):
        load_source(f"{tmp_path}/*.jsonl", "train")
    write(tmp_path / "README.md", "about")
    with pytest.raises(ValueError, match=r"matches .*README\.md, but only \.jsonl, "):
        load_source(f"{tmp_path}/*", "train")


# ---- saved by datasets


def test_a_saved_data_set_is_read_under_any_split_and_in_order(tmp_path: Path) -> None:
    """Rows that were shuffled before saving; in 3 files; a number format is none of ours."""
    shuffled = Dataset.from_list(ROWS).select([5, 0, 4, 1, 3, 2]).with_format("numpy")
    shuffled.save_to_disk(tmp_path / "saved", num_shards=3)
    assert rows_of(str(tmp_path / "saved"), "train[:4]") == [ROWS[number] for number in (5, 0, 4, 1)]
    next((tmp_path / "saved").glob("*-00001-*")).unlink()
    with pytest.raises(ValueError, match=r"data-00001-of-00003\.arrow is missing: the folder was not copied whole"):
        load_source(str(tmp_path / "saved"), "train")


def test_a_saved_dict_gives_the_split(tmp_path: Path) -> None:
    parts = {"train": Dataset.from_list(ROWS[:4]), "test": Dataset.from_list(ROWS[4:])}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert rows_of(str(tmp_path / "saved"), "test") == ROWS[4:]
    with pytest.raises(ValueError, match=r"no split 'val': its splits are test, train"):
        load_source(str(tmp_path / "saved"), "val")


# ---- URLs


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine, and the folder that it serves."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}", folder
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize("ending", [".jsonl", ".csv.gz", ".parquet"])
def test_a_url_is_downloaded_once_and_read_as_a_file(server: tuple[str, Path], tmp_path: Path, ending: str) -> None:
    """The second start works without the server's file, and knows the rows by their contents."""
    url, folder = server
    path = Path(write(folder / f"mine{ending}", ROWS))
    content = path.read_bytes()  # a .gz file written again would hold another time
    sources = []
    for _ in range(2):
        sources.append(load_source(f"{url}/mine{ending}?download=true", "train[2:]", cache_dir=tmp_path / "cache"))
        path.unlink(missing_ok=True)
    assert sources[0].rows.to_list() == list(sources[1].stream())
    assert len(sources[0].rows) == 4
    path.write_bytes(content)
    assert sources[1].fingerprint == load_source(str(path), "train[2:]").fingerprint


def test_broken_lines_of_a_url_are_named(server: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = server
    write(folder / "mine.jsonl", b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"mine\.jsonl:2: not UTF-8"):
        _ = load_source(f"{url}/mine.jsonl", "train", cache_dir=tmp_path / "cache").rows


def test_any_file_system_of_fsspec_may_be_named_and_may_have_globs(tmp_path: Path) -> None:
    """Two files of one name in different folders, in the memory of this process; so for hf:// and s3://."""
    system = fsspec.filesystem("memory")
    for folder, rows in (("a", ROWS[:3]), ("b", ROWS[3:])):
        system.pipe(f"/{tmp_path.name}/{folder}/mine.parquet", Path(write(tmp_path / "x.parquet", rows)).read_bytes())
    source = load_source(f"memory://{tmp_path.name}/*/mine.parquet", "train", cache_dir=tmp_path / "cache")
    assert source.rows.to_list() == ROWS


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:9/mine.jsonl", r"Cannot connect|FileNotFound|Connect"),
        ("nosuch://bucket/mine.jsonl", r"Protocol not known: nosuch"),
        ("memory://none/mine.jsonl", r"FileNotFoundError"),
    ],
)
def test_a_url_that_can_not_be_reached_gets_a_sentence(tmp_path: Path, url: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"`data\.dataset` {url} can't be downloaded: .*({why})") as caught:
        load_source(url, "train", cache_dir=tmp_path / "cache")
    assert str(caught.value).endswith("or set `data.dataset` to a local copy")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


# ---- what can't be a data set


@pytest.mark.parametrize("dataset", ["/no/such/folder", "./none", "none.jsonl", "a/b/c", "~/no-such-folder"])
def test_a_missing_path_says_so_without_asking_the_hub(dataset: str) -> None:
    with pytest.raises(ValueError, match="there is no such file or folder: check the path"):
        load_source(dataset, "train")


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_an_empty_file_is_named(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ValueError, match=rf"mine\.{ending} is empty"):
        load_source(write(tmp_path / f"mine.{ending}", ""), "train")


def test_other_files_and_files_of_several_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"page\.html, but only \.jsonl, .*; a data set on the Hub has an id"):
        load_source("https://x/page.html", "train")
    with pytest.raises(
        ValueError, match=r"only \.jsonl, .*\.tsv files \(also as .*\), \.parquet and \.arrow files can"
    ):
        load_source(write(tmp_path / "mine.txt", "a"), "train")
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "train.csv", "a\n1\n")
    with pytest.raises(ValueError, match=r"of several kinds: .*train\.csv, .*train\.jsonl"):
        load_source(str(tmp_path), "train")


def test_malformed_lines_are_named_with_their_numbers(tmp_path: Path) -> None:
    """Lines 2, 4 and 5 of 5; line 3 is empty. In an archive too."""
    for ending in (".jsonl", ".jsonl.gz", ".jsonl.zst"):
        path = tmp_path / f"mine{ending}"
        write(path, pack(b'{"a": 1}\n{"a":\n\n[1]\noops\n', ending))
        first, second, third = malformed_lines((path,))
        assert first.startswith(f"{path}:2: not JSON (Expecting value at column ")
        assert second == f"{path}:4: expected an object {{...}}, got list"
        assert third == f"{path}:5: not JSON (Expecting value at column 1)"


def test_files_of_a_split_that_were_not_copied_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train-00001-of-00003.jsonl", ROWS)
    assert len(find_files(str(tmp_path), "train")) == 1
    assert "has 1 of the 3 files of split train" in caplog.text
