"""The cache of tokenised examples: its key, and that it appears whole or not at all."""

import json
import multiprocessing
import os
import shutil
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.data.encoding import cache
from smollit.data.encoding.encoder import EncodeOptions, Encoder
from smollit.data.formats.detect import recognise
from smollit.data.formats.format import Format
from smollit.data.formats.types import Kind
from smollit.data.sources.source import Source, load_source
from smollit.data.template.template import load_template


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def pairs(path: Path, count: int = 6) -> Source:
    """Rows that are both chats and pairs, as published preference data is."""
    question = {"role": "user", "content": "q"}
    rows = [
        {
            "messages": [question, {"role": "assistant", "content": f"answer {number}"}],
            "prompt": "q",
            "chosen": f"answer {number}",
            "rejected": "no",
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_source(str(path), "train")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return pairs(tmp_path / "mine.jsonl")


@pytest.fixture
def encoder(tiny_tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return make(tiny_tokenizer)


def form(kind: Kind = "chat") -> Format:
    """Messages, or pairs."""
    return recognise(["messages"] if kind == "chat" else ["prompt", "chosen", "rejected"], [], kind=kind)


def make(
    tokenizer: PreTrainedTokenizerBase,
    template: str = "chatml",
    default_system: str = "keep",
    format: Format | None = None,
    **options: Any,
) -> Encoder:
    """An encoder of chats of up to 64 tokens."""
    options = {"kind": "chat", "max_length": 64} | options
    kind = options["kind"]
    loaded = load_template(tokenizer, template, allow_default=kind == "chat", default_system=default_system)
    return Encoder(loaded, EncodeOptions(**options), format or form(kind))


def ids(folder: Path) -> list[list[int]]:
    return cache.load(folder)[0]["input_ids"]


# ---- the key


# case: data-01
def test_the_same_options_give_the_same_key(source: Source, encoder: Encoder, tmp_path: Path) -> None:
    """A tokenizer that is loaded again, and one that has been used with padding, are the same tokenizer."""
    again = AutoTokenizer.from_pretrained(encoder.template.tokenizer.name_or_path)
    again("b c d e", truncation=True, max_length=3)
    again.backend_tokenizer.enable_padding(length=8)
    assert cache.cache_key(pairs(tmp_path / "copy.jsonl"), make(again)) == cache.cache_key(source, encoder)


# case: data-01
def test_each_thing_that_changes_tokens_changes_the_key(
    source: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, tokenizer, one character of the template, kind, the version of the format: 5 changes, 6 keys."""
    tokenizer = AutoTokenizer.from_pretrained(encoder.template.tokenizer.name_or_path)
    tokenizer.add_tokens(["newword"])
    (tmp_path / "other.jinja").write_text(encoder.template.source.replace("<|im_start|>", "<|im_start|>!"))
    keys = [
        cache.cache_key(source, encoder),
        cache.cache_key(pairs(tmp_path / "more.jsonl", 7), encoder),
        cache.cache_key(source, make(tokenizer)),
        cache.cache_key(source, make(encoder.template.tokenizer, str(tmp_path / "other.jinja"))),
        cache.cache_key(source, make(encoder.template.tokenizer, kind="preference")),
    ]
    monkeypatch.setattr(cache, "FORMAT_VERSION", -1)
    keys.append(cache.cache_key(source, encoder))
    assert len(set(keys)) == len(keys) == 6


# Options of EncodeOptions, and others, that change what is trained: each with a value that is not its default.
CHANGES: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 65},
    "truncate": {"truncate": "left-turns"},
    "train_on": {"train_on": "last"},
    "train_on roles": {"train_on": ("assistant", "user")},
    "control_text": {"control_text": "drop"},
    "min_score_gap": {"min_score_gap": 0.0},
    "score_ties": {"score_ties": "drop"},
    "columns": {"format": recognise(["dialog"], [], kind="chat", mapping={"messages": "dialog"})},
    "extra_roles": {"format": recognise(["messages"], [], kind="chat", extra_roles=["critic"])},
    "format": {"format": recognise(["text"], [{"text": "words"}], kind="chat")},
}


# case: data-01
def test_each_option_that_changes_tokens_changes_the_key(
    source: Source, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """10 changes of one option each: 11 keys with that of the defaults. Every field of EncodeOptions is among them."""
    keys = [cache.cache_key(source, make(tiny_tokenizer, **change)) for change in ({}, *CHANGES.values())]
    assert len(set(keys)) == len(keys) == 11
    options = {field.name for field in fields(EncodeOptions)}
    assert options - {"kind"} <= {name for change in CHANGES.values() for name in change}
    assert keys[0] == cache.cache_key(source, make(tiny_tokenizer, truncate="right"))


# case: data-01
def test_what_becomes_of_the_templates_own_system_text_changes_the_key(
    source: Source, encoder: Encoder, tmp_path: Path
) -> None:
    """Kept, dropped, replaced: 3 keys. Where the template adds none, dropping it changes nothing."""
    added = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    (tmp_path / "own.jinja").write_text(added + encoder.template.source)
    kept, dropped, replaced = (
        cache.cache_key(source, make(encoder.template.tokenizer, str(tmp_path / "own.jinja"), what))
        for what in ("keep", "drop", "Be brief.")
    )
    assert len({kept, dropped, replaced}) == 3
    assert cache.cache_key(source, make(encoder.template.tokenizer, default_system="drop")) == cache.cache_key(
        source, encoder
    )


# ---- building


def test_a_build_holds_the_good_rows_and_the_report(tmp_path: Path, encoder: Encoder) -> None:
    """Row 1 of 0, 1, 2 is bad: rows 0 and 2 are kept, under their own numbers."""
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in (good, {"messages": []}, good)))
    cache.build(load_source(str(tmp_path / "mine.jsonl"), "train"), encoder, tmp_path / "cache" / "key", None)
    examples, report = cache.load(tmp_path / "cache" / "key")
    assert examples["row"] == [0, 2]
    assert (report.rows, report.kept, report.dropped) == (3, 2, {"empty conversation": 1})
    assert report.tokens == sum(map(len, examples["input_ids"]))


def test_two_processes_tokenise_as_one_does(tmp_path: Path, source: Source, encoder: Encoder) -> None:
    cache.build(source, encoder, tmp_path / "one", None)
    cache.build(source, encoder, tmp_path / "two", 2)
    assert ids(tmp_path / "one") == ids(tmp_path / "two")
    assert cache.load(tmp_path / "one")[1] == cache.load(tmp_path / "two")[1]


def test_only_the_tokenising_shows_a_bar(
    tmp_path: Path, source: Source, encoder: Encoder, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets.enable_progress_bars()
    cache.build(source, encoder, tmp_path / "key", None)
    shown = capfd.readouterr().err
    assert "tokenising" in shown
    assert not any(noise in shown for noise in ("Filter", "Saving", "Generating", "Map"))


def test_malformed_lines_stop_the_build_with_file_and_line(tmp_path: Path, encoder: Encoder) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"messages": []}\n\n{"messages": [\n')
    with pytest.raises(ValueError, match=r"malformed JSON Lines, fix these first:\n.*mine\.jsonl:3: not JSON"):
        cache.build(load_source(str(path), "train"), encoder, tmp_path / "cache" / "key", None)
    assert list((tmp_path / "cache").iterdir()) == []


# ---- whole or not at all


# case: data-12
def test_a_build_that_dies_leaves_nothing(
    tmp_path: Path, source: Source, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "count_examples", die)
    with pytest.raises(KeyboardInterrupt):
        cache.build(source, encoder, tmp_path / "cache" / "key", None)
    assert list((tmp_path / "cache").iterdir()) == []


# case: data-12
def test_the_second_of_two_builders_keeps_what_the_first_made(
    tmp_path: Path, source: Source, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one build is about to publish, another one does: the folder is whole, and no partial one is left."""
    folder, publish = tmp_path / "cache" / "key", cache.publish

    def race(temporary: Path, target: Path) -> None:
        shutil.copytree(temporary, target)
        publish(temporary, target)

    monkeypatch.setattr(cache, "publish", race)
    cache.build(source, encoder, folder, None)
    assert len(ids(folder)) == 6
    assert list(folder.parent.iterdir()) == [folder]


# case: data-12
def test_processes_may_build_at_the_same_time(tmp_path: Path, source: Source, encoder: Encoder) -> None:
    fork = multiprocessing.get_context("fork")
    folder = tmp_path / "cache" / "key"
    builders = [fork.Process(target=cache.build, args=(source, encoder, folder, None)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(ids(folder)) == 6
    assert list(folder.parent.iterdir()) == [folder]


def partial(parent: Path, name: str, age: float) -> Path:
    folder = parent / name
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "all.arrow").write_text("x")
    for path in (folder / "inner" / "all.arrow", folder / "inner", folder):
        os.utime(path, (time.time() - age,) * 2)
    return folder


def test_only_dead_builds_are_cleaned_away(tmp_path: Path) -> None:
    """Untouched for two hours: dead. A minute, or a name that is not a build's: left alone."""
    name = f".{'a' * 32}-{'b' * 32}"
    dead = partial(tmp_path, name, age=7200)
    young = partial(tmp_path, name.replace("b", "c"), age=60)
    others = [partial(tmp_path, other, age=7200) for other in (".my-notes", "a" * 32, ".git")]
    cache.remove_stale(tmp_path)
    assert not dead.exists()
    assert all(folder.exists() for folder in (young, *others))


def test_a_cache_may_be_read_by_others(tmp_path: Path, source: Source, encoder: Encoder) -> None:
    """The folder has the rights that any new folder has here, not those of a private temporary one."""
    cache.build(source, encoder, tmp_path / "cache" / "key", None)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "cache" / "key").stat().st_mode == (tmp_path / "plain").stat().st_mode
