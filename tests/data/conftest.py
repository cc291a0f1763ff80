"""Builders that the tests of the data rooms share: rows, files, data modules, encoders, texts of a known length.

Fixtures are found by name; functions are imported, as in `from tests.data.conftest import ready, user`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from smollit.data import ChatDataModule
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.formats.detection.detect import Format, detect_format
from smollit.data.formats.types import Kind
from smollit.data.sources.readers import RAW
from smollit.data.template.template import load_template
from tests.conftest import TINY

Row = dict[str, Any]
COLUMNS = {"chat": ["messages"], "preference": ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]}

END = "<|im_end|>"


def system(content: Any) -> Row:
    return {"role": "system", "content": content}


def user(content: Any, **keys: Any) -> Row:
    return {"role": "user", "content": content, **keys}


def assistant(content: Any, **keys: Any) -> Row:
    return {"role": "assistant", "content": content, **keys}


def chats(count: int, name: str = "") -> list[Row]:
    """Chats of one question and one response: q0 -> a0, q1 -> a1, ..."""
    return [{"messages": [user(f"q{name}{number}"), assistant(f"a{name}{number}")]} for number in range(count)]


# ---- data modules


def make(tmp_path: Path, dataset: Any, kind: type[ChatDataModule] = ChatDataModule, **options: Any) -> ChatDataModule:
    """A data module with the tiny tokenizer, ChatML, and no validation split."""
    defaults = {"val_split": None, "tokenizer_name": str(TINY), "chat_template": "chatml", "max_length": 128}
    return kind(dataset, **defaults | {"cache_dir": str(tmp_path / "cache")} | options)


def ready(tmp_path: Path, dataset: Any, kind: type[ChatDataModule] = ChatDataModule, **options: Any) -> ChatDataModule:
    """The same, tokenized and set up."""
    module = make(tmp_path, dataset, kind, **options)
    module.prepare_data()
    module.setup("fit")
    return module


def whole(module: ChatDataModule) -> list[str]:
    """The whole text of each training chat."""
    return [module.template.tokenizer.decode(row["input_ids"]) for row in module.examples["train"].rows]


def spans(module: ChatDataModule, key: str = "train") -> list[list[str]]:
    """The text of each loss span of each chat."""
    decode = module.template.tokenizer.decode
    return [
        [decode(row["input_ids"][a:b]) for a, b in zip(row["spans"][::2], row["spans"][1::2], strict=True)]
        for row in module.examples[key].rows
    ]


def pair_texts(module: ChatDataModule) -> list[tuple[str, ...]]:
    """Prompt, chosen and rejected of each training pair, decoded."""
    decode = module.template.tokenizer.decode
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [tuple(decode(row[name]) for name in names) for row in module.examples["train"].rows]


# ---- fixtures


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
