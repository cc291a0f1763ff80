"""Builders of messages, and the way of a row to its record: `from tests.data.formats.conftest import user`."""

from typing import Any

import pytest

from smollit.data.formats.converters import to_records
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.format import Format
from smollit.data.formats.types import Conversation, Kind, Preference, Text
from tests.data.conftest import Row, assistant, user


def human(value: Any) -> Row:
    return {"from": "human", "value": value}


def gpt(value: Any) -> Row:
    return {"from": "gpt", "value": value}


HI = [user("hi"), assistant("yo")]


def columns_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def known(rows: list[Row], kind: Kind = "chat", **options: Any) -> Format:
    """The format that these rows are detected to have."""
    return detect_format(columns_of(rows), rows, kind=kind, **options)


def to_record(row: Row, format: Format) -> Conversation | Preference | Text:
    """The only record of a row; raised if it is a bad one."""
    (found,) = to_records(row, format)
    if isinstance(found, BadRow):
        raise found
    return found


def record(row: Row, kind: Kind | None = None, **options: Any) -> Conversation | Preference | Text:
    """What a row becomes when it is the only one of its split; with `chosen` or `rejected`, it is a pair."""
    kind = kind or ("preference" if row.keys() & {"chosen", "rejected"} else "chat")
    return to_record(row, known([row], kind, **options))


def turns(row: Row, **options: Any) -> list[Row]:
    """The messages of a chat."""
    found = record(row, **options)
    assert isinstance(found, Conversation)
    return found.messages


def pair(row: Row, **options: Any) -> tuple[list[Row], Row, Row, float | None]:
    """Prompt, chosen, rejected and score gap of a pair."""
    found = record(row, **options)
    assert isinstance(found, Preference)
    return found.prompt, found.chosen, found.rejected, found.score_gap


def bad(row: Row, format: Format | None = None) -> BadRow:
    """Why a row can't be used."""
    with pytest.raises(BadRow) as caught:
        record(row) if format is None else to_record(row, format)
    return caught.value
