"""Rows as a view that `inspect` shows, and what it prints."""

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from smollit.commands.inspect.command import InspectCommand
from smollit.commands.inspect.split_view import SplitView
from smollit.data.encoding.counts import count_examples
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.types import Kind
from smollit.data.template.template import load_template


@pytest.fixture(scope="session")
def make(tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., SplitView]:
    """make(rows) is a view of rows, encoded as training encodes them. A list of texts is a chat, user first; a tuple
    is a pair: prompt, chosen, rejected."""

    def make_view(
        rows: list[Any],
        max_length: int = 256,
        *,
        template: str = "chatml",
        tokenizer: PreTrainedTokenizerBase = tiny_tokenizer,
        name: str = "train",
        **more: Any,
    ) -> SplitView:
        kind: Kind = "chat" if isinstance(rows[0], list) else "preference"
        written = [_row(row) for row in rows]
        format = detect_format(list(written[0]), written, kind=kind)
        encoder = Encoder(load_template(tokenizer, template), EncodeOptions(kind, max_length), format)
        columns = {column: [row[column] for row in written] for column in written[0]}
        examples = Dataset.from_dict(encoder(columns, list(range(len(rows)))))
        return SplitView(
            name=name,
            num_rows=len(rows),
            row=written.__getitem__,
            encoder=encoder,
            examples=examples.filter(lambda problem: problem == "", input_columns="problem"),
            report=count_examples(examples),
            **more,
        )

    return make_view


def _row(row: list[str] | tuple[str, str, str]) -> dict[str, Any]:
    if isinstance(row, tuple):
        return dict(zip(("prompt", "chosen", "rejected"), row, strict=True))
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(row)]}


@pytest.fixture(scope="session")
def look() -> Callable[..., str]:
    """look(view, ids=True) is what `inspect --ids true` prints in a pipe of 100 columns."""

    def show(view: SplitView, **options: Any) -> str:
        file = StringIO()
        InspectCommand(**options).show(view, Console(file=file, width=100))
        return file.getvalue()

    return show
