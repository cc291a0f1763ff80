"""The cache of examples: its key, that it appears complete or not at all, and that a second start repeats no work."""

import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.cli.errors import for_the_user
from smollit.data.encoding.cache import cache_key, publish
from smollit.data.encoding.options import EncodeOptions
from smollit.data.encoding.part import EncodedPart, find_part
from smollit.data.sources.mixture import Part, load_source
from smollit.data.sources.source import Source
from smollit.data.template.template import load_template

Row = dict[str, Any]
Write = Callable[..., str]
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def both(count: int = 6) -> list[Row]:
    """Rows that are both chats and pairs, as published preference data is."""
    question = {"role": "user", "content": "q"}
    return [
        {
            "messages": [question, {"role": "assistant", "content": f"answer {number}"}],
            "prompt": "q",
            "chosen": f"answer {number}",
            "rejected": "no",
        }
        for number in range(count)
    ]


@pytest.fixture
def find(write: Write, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., EncodedPart]:
    """A part of a file of these rows, as chats of up to 64 tokens."""

    def run(rows: list[Row], streaming: bool = False, **part: Any) -> EncodedPart:
        named = Part(write(rows), **({"split": "all"} | part))
        template, options = load_template(tiny_tokenizer, "chatml"), EncodeOptions("chat", 64)
        cache_dir = tmp_path / "cache"
        return find_part(
            named, label="train", template=template, options=options, cache_dir=cache_dir, streaming=streaming
        )

    return run


@pytest.fixture
def part(find: Callable[..., EncodedPart]) -> EncodedPart:
    return find(both())


def ids(part: EncodedPart) -> list[list[int]]:
    return part.read().examples["input_ids"]


# ---- the key


@pytest.fixture
def source(write: Write) -> Source:
    return load_source(write(both()), "train")


# case: data-01
def test_the_same_options_give_the_same_key(source: Source, write: Write, make_encoder: Any) -> None:
    """A tokenizer that is loaded again, and one that has been used with padding, are the same tokenizer."""
    encoder = make_encoder()
    again = AutoTokenizer.from_pretrained(encoder.template.tokenizer.name_or_path)
    again("b c d e", truncation=True, max_length=3)
    again.backend_tokenizer.enable_padding(length=8)
    copy = load_source(write(both(), "copy.jsonl"), "train")
    assert cache_key(copy, make_encoder(tokenizer=again)) == cache_key(source, encoder)


# Options of EncodeOptions, and formats, that change tokens: each with a value that is not its default.
# ---- one part


def test_a_part_holds_the_good_rows_and_the_report(find: Any) -> None:
    """Row 1 of 0, 1, 2 is bad: rows 0 and 2 are kept, under their own numbers; built again, nothing changes."""
    part = find([CHAT, {"messages": []}, CHAT])
    part.build(None)
    before = part.folder.stat().st_mtime_ns
    part.build(None)
    examples, report = part.read().examples, part.read().report
    assert examples["row"] == [0, 2]
    assert (report.rows, report.kept, report.dropped) == (3, 2, {"empty conversation": 1})
    assert report.tokens == sum(map(len, examples["input_ids"]))
    assert part.folder.stat().st_mtime_ns == before


# promise: damaged-cache
# case: B12
@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 100), Path.unlink])
def test_a_damaged_folder_is_named_and_made_anew(find: Any, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    part = find([CHAT] * 3)
    part.build(None)
    before = list(part.read().examples["input_ids"])
    damage(next(part.folder.glob("examples/*.arrow")))
    with pytest.raises(ValueError, match=r"the cache of split train is damaged \(.*\.arrow is "):
        part.read()
    part.build(None)
    assert "train: the cache is damaged" in caplog.text
    assert list(part.read().examples["input_ids"]) == before


# promise: dropped-rows
def test_too_many_bad_rows_are_refused_at_each_start(find: Any) -> None:
    """1 of 4 is bad: a fraction of 0.25. At 0.1 it is refused, also from the cache; at 0.25 it is not."""
    part = find([CHAT, CHAT, CHAT, {"messages": []}])
    part.build(None)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of 4 rows of split train can't be used"):
            part.load(0.1)
    assert len(part.load(0.25).examples) == 3


# case: data-12
@pytest.mark.parametrize("streaming", [False, True])
def test_finding_a_part_tokenizes_nothing_and_logs_its_format_once(
    find: Any, tmp_path: Path, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]
    with caplog.at_level(logging.INFO):
        find(rows, streaming=streaming)
    logged = "train: ShareGPT: `conversations` (from/value or role/content); roles human -> user, gpt -> assistant"
    assert caplog.text.count(logged) == 1
    assert not (tmp_path / "cache").exists()


def test_only_the_tokenizing_shows_a_bar(
    part: EncodedPart, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal: elsewhere, a line says it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    datasets.enable_progress_bars()
    part.build(None)
    shown = capfd.readouterr().err
    assert "tokenizing" in shown
    assert not any(noise in shown for noise in ("Filter", "Saving", "Generating", "Map"))


# ---- complete or not at all


# case: data-12
def test_a_build_that_fails_leaves_nothing(find: Any, tmp_path: Path) -> None:
    """The last line is not JSON: file and line are named, and the next start begins anew."""
    part = find([{"messages": []}])
    with Path(part.part.dataset).open("a") as file:
        file.write('\n{"messages": [\n')
    with pytest.raises(ValueError, match=r"malformed JSON Lines.*:\n.*rows\.jsonl:3: not JSON"):
        part.build(None)
    assert list((tmp_path / "cache").glob("*-*")) == []


def test_a_full_disk_names_the_folder(part: EncodedPart, tmp_path: Path) -> None:
    """No file may be larger than 100 bytes when the rows have been read; nothing is left."""
    assert part.source.num_rows == 6
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises((OSError, ValueError)) as failed:
            part.build(num_proc=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    said = for_the_user(failed.value)
    assert said and f"File too large: '{part.folder.parent}': make room" in said.text and not part.folder.exists()


# case: data-12
def test_the_second_of_two_builders_keeps_what_the_first_made(part: EncodedPart, tmp_path: Path) -> None:
    """Another build has published before this one does: the folder is complete, and does not change."""
    part.build(None)
    mine = shutil.copytree(part.folder, tmp_path / "mine")
    before = part.folder.stat().st_ino
    publish(mine, part.folder)
    assert len(ids(part)) == 6 and part.folder.stat().st_ino == before


# case: data-12
def test_processes_may_build_at_the_same_time(part: EncodedPart) -> None:
    fork = multiprocessing.get_context("fork")
    builders = [fork.Process(target=part.build, args=(None,)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(ids(part)) == 6
    assert [path for path in part.cache_dir.iterdir() if path.is_dir()] == [part.folder]


def partial(parent: Path, name: str, age: float) -> Path:
    folder = parent / name
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "all.arrow").write_text("x")
    for path in (folder / "inner" / "all.arrow", folder / "inner", folder):
        os.utime(path, (time.time() - age,) * 2)
    return folder


def test_only_dead_builds_are_cleaned_away(part: EncodedPart) -> None:
    """Untouched for two hours: dead. A minute, or a name that is not a build's: left alone."""
    name = f".{'a' * 32}-{'b' * 32}"
    dead = partial(part.cache_dir, name, age=7200)
    young = partial(part.cache_dir, name.replace("b", "c"), age=60)
    others = [partial(part.cache_dir, other, age=7200) for other in (".my-notes", "a" * 32, ".git")]
    part.build(None)
    assert not dead.exists()
    assert all(folder.exists() for folder in (young, *others))


def test_a_cache_may_be_read_by_others(part: EncodedPart, tmp_path: Path) -> None:
    """The folder has the rights that any new folder has here, not those of a private temporary one."""
    part.build(None)
    (tmp_path / "plain").mkdir()
    assert part.folder.stat().st_mode == (tmp_path / "plain").stat().st_mode
