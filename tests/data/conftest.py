"""Builders that the tests of the data rooms share: files of rows, encoders, examples, texts of a known length."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from smollit.data.encoding.encoder import EncodeOptions, Encoder
from smollit.data.formats.detect import Format, detect_format
from smollit.data.formats.types import Kind
from smollit.data.sources.readers import RAW
from smollit.data.template.template import load_template

Row = dict[str, Any]
COLUMNS = {"chat": ["messages"], "preference": ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]}


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of `datasets` is the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows into a JSON Lines file, and gives its path."""

    def to_file(rows: list[Row], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return to_file


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A template that prints contents alone, so that lengths are those of the texts."""
    (tmp_path / "bare.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return str(tmp_path / "bare.jinja")


@pytest.fixture
def make_encoder(tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., Encoder]:
    """An encoder of a kind, by default of chats with ChatML, up to 64 tokens."""

    def make(
        kind: Kind = "chat",
        max_length: int = 64,
        *,
        template: str = "chatml",
        tokenizer: PreTrainedTokenizerBase | None = None,
        format: Format | None = None,
        **options: Any,
    ) -> Encoder:
        loaded = load_template(tokenizer or tiny_tokenizer, template)
        return Encoder(
            loaded, EncodeOptions(kind, max_length, **options), format or detect_format(COLUMNS[kind], [], kind=kind)
        )

    return make


@pytest.fixture
def encode() -> Callable[..., list[Row]]:
    """The examples of rows, read as lines of JSON."""

    def run(encoder: Encoder, rows: list[Row]) -> list[Row]:
        columns = encoder({RAW: [json.dumps(row) for row in rows]}, list(range(len(rows))))
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return run


@pytest.fixture
def words(tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """A text of exactly n tokens, all of one word."""

    def text(count: int, word: str = " the") -> str:
        assert len(tiny_tokenizer.encode(word * count, add_special_tokens=False)) == count
        return word * count

    return text
