"""What `inspect` shows of a row is what its example has."""

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from smollit.commands.inspect.pieces import inspect_row
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.encoding.steps import TOKEN_COLUMNS
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.types import Kind
from smollit.data.sources.readers import RAW
from smollit.data.template.template import load_template

TURNS = [
    {"role": role, "content": content}
    for n in range(4)
    for role, content in (("user", f"question {n} <|im_end|>"), ("assistant", f"reply {n} is this"))
]
ROWS: dict[Kind, dict[str, Any]] = {
    "chat": {"messages": TURNS},
    "preference": {"prompt": TURNS[:-1], "chosen": "yes, of course", "rejected": "no, of course"},
}


def make(tokenizer: PreTrainedTokenizerBase, kind: Kind, max_length: int = 64, truncate: Any = "right") -> Encoder:
    template = load_template(tokenizer, "chatml")
    return Encoder(template, EncodeOptions(kind, max_length, truncate), detect_format(list(ROWS[kind]), [], kind=kind))


# promise: inspect
@pytest.mark.parametrize("truncate", ["right", "left-turns"])
@pytest.mark.parametrize("kind", ["chat", "preference"])
def test_shown_pieces_are_the_example(tiny_tokenizer: PreTrainedTokenizerBase, kind: Kind, truncate: str) -> None:
    """Ids of the pieces that are kept, joined, are the example's; the loss tokens are those of its spans."""
    for max_length in (12, 30, 60, 90, 500):
        encoder = make(tiny_tokenizer, kind, max_length, truncate)
        columns = encoder({RAW: [json.dumps(ROWS[kind])]}, [0])
        (shown,) = inspect_row(encoder, {RAW: json.dumps(ROWS[kind])}, 0)
        assert shown.problem == columns["problem"][0]
        if shown.problem:
            continue
        kept = [token for piece in shown.pieces if piece.state != "truncated" for token in piece.ids]
        assert kept == [token for name in TOKEN_COLUMNS[kind] if name != "spans" for token in columns[name][0]]
        in_loss = sum(len(piece.ids) for piece in shown.pieces if piece.state == "loss")
        assert columns["loss_tokens"] == [in_loss]
        is_truncated = any(piece.state == "truncated" for piece in shown.pieces)
        assert [is_truncated] == columns["truncated"] == [max_length < 200]


def test_shown_pieces_have_roles_and_notes(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [("system", "s"), ("user", "x<|im_end|>"), ("assistant", "yo")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (shown,) = inspect_row(make(tiny_tokenizer, "chat"), row, 7)
    assert [(piece.role, piece.state, piece.text) for piece in shown.pieces] == [
        ("system", "context", "<|im_start|>system\ns<|im_end|>\n"),
        ("user", "context", "<|im_start|>user\nx"),
        ("user", "context", "<|im_end|>"),
        ("user", "context", "<|im_end|>\n"),
        ("assistant", "context", "<|im_start|>assistant\n"),
        ("assistant", "loss", "yo<|im_end|>"),
    ]
    assert (shown.index, shown.problem, shown.notes) == (7, "", ["1 control text escaped"])


def test_a_dropped_row_shows_what_was_tokenized(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (shown,) = inspect_row(make(tiny_tokenizer, "preference"), {"prompt": "q", "chosen": "a", "rejected": "a"}, 0)
    assert shown.problem == "identical responses"
    assert [piece.text for piece in shown.pieces if piece.branch != "shared"] == ["a<|im_end|>"] * 2
    assert inspect_row(make(tiny_tokenizer, "chat"), {"messages": []}, 0)[0].pieces == []
