"""No row, however malformed, ends in anything but a record or a BadRow."""

import json
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smollit.data.formats.converters import to_records
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.format import GROUPED, LAYOUTS, Format
from smollit.data.formats.groups import Groups
from smollit.data.formats.messages.roles import Roles
from smollit.data.formats.ranking import Ranking
from smollit.data.formats.types import Conversation, Kind, Preference, Text
from smollit.data.sources.mixture import FormatName

Row = dict[str, Any]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3)
WORDS = st.sampled_from(["user", "assistant", "human", "gpt", "system", "tool", "Human: a\n\nAssistant: b", "[{", "a"])
KEYS = st.sampled_from(["role", "content", "from", "value", "train", "weight", "tool_calls", "type", "text"])
VALUES = st.recursive(
    SCALARS | WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
TURNS = st.lists(st.fixed_dictionaries({}, optional={"role": WORDS, "content": VALUES, "from": WORDS, "value": VALUES}))
ANY = VALUES | TURNS | TURNS.map(lambda turns: json.dumps(turns, default=str))
RANKING = Ranking("highest [1, 2]")
ALL_PARTS = sorted({part for kind in LAYOUTS.values() for layout in kind.values() for part in sum(layout, ())})


# promise: any-row
@pytest.mark.slow
@settings(max_examples=100)
@given(row=st.dictionaries(st.sampled_from(ALL_PARTS), ANY))
@example(row={"messages": "\ud800", "text": "x" * 10**6, "chosen": "\n\n" * 10**5, "rejected": "Human:" * 10**5})
@example(row={"text": None, "role": [], "parent": [], "thread": "[]"})
@example(row={"chosen": ["Human:"] * 10**5, "rejected": {}, "prompt": [[[]]], "completion": b"", "score_chosen": {}})
def test_nothing_but_a_bad_row_can_come_of_any_row(row: Row) -> None:
    """Every format, and the format that is detected."""
    for kind, layouts in LAYOUTS.items():
        for name in layouts:
            parts = {part: part for part in ALL_PARTS}
            for roles in (Roles(), Roles(("a",), sharegpt=True, odd_turns="merge")):
                _only_bad_rows(row, Format(name, kind, parts, roles=roles, ranking=RANKING, media=("images",)))
        format = _detected(row, kind)
        if format is not None:
            assert format.describe()
            _only_bad_rows(row, format)


def _detected(row: Row, kind: Kind) -> Format | None:
    try:
        return detect_format(list(row), [row], kind=kind)
    except ValueError:
        return None


def _only_bad_rows(row: Row, format: Format) -> None:
    groups = [*Groups(format)([row, row])] if format.name in GROUPED else [row]
    for record in (record for group in groups for record in to_records(group, format)):
        if isinstance(record, BadRow):
            assert record.reason and record.detail.encode() and len(record.detail) < 1000
            continue
        texts = [record.text] if isinstance(record, Text) else [turn["content"] for turn in _turns(record)]
        assert texts and all(isinstance(text, str) for text in texts)


def _turns(record: Conversation | Preference) -> list[Row]:
    if isinstance(record, Conversation):
        return record.messages
    return [*record.prompt, record.chosen, record.rejected]


def test_every_format_has_a_layout() -> None:
    assert {"auto", *LAYOUTS["chat"], *LAYOUTS["preference"]} == set(get_args(FormatName))
