"""The tables of docs/data.md: each line is a data set, its settings, and what smollit reads in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from smollit.data import ChatDataModule, PreferenceDataModule
from smollit.data.encoding.steps import DroppedRow
from smollit.data.formats.types import Conversation, Preference, Record
from smollit.data.template.train_on import messages_with_loss
from tests.conftest import ROOT
from tests.data.conftest import Row, make
from tests.data.sources.conftest import write

LINE = re.compile(r"^\| (?P<shape>.+?) \| (?P<rows>`\{.+\}`) \| (?P<settings>.*?) ?\| (?P<read>.+) \|$", re.MULTILINE)


def table(title: str) -> dict[str, tuple[list[Row], Row, str]]:
    """Rows, settings and what they are read as, by the name of the shape."""
    page = (ROOT / "docs" / "data.md").read_text()
    section = page.split(f"### {title}\n")[1].split("\n#")[0]
    found = {}
    for line in LINE.finditer(section):
        rows = [json.loads(row) for row in re.findall(r"`(\{.+?\})`(?= |$)", line["rows"])]
        found[line["shape"]] = (rows, yaml.safe_load(line["settings"].strip("`") or "{}"), line["read"])
    assert len(found) == section.count("\n| ") - 1, "every line is read"
    return found


def shown(record: Record) -> str:
    """A record as the tables write it."""
    if isinstance(record, Conversation):
        in_loss = messages_with_loss(record.messages, "assistant")
        turns = [(turn["role"] + "*" * (n in in_loss), turn) for n, turn in enumerate(record.messages)][
            : in_loss[-1] + 1
        ]
    elif isinstance(record, Preference):
        turns = [(turn["role"], turn) for turn in record.prompt]
        turns += [("chosen", record.chosen), ("rejected", record.rejected)]
    else:
        turns = [("text*", {"content": record.text})]
    said = " ".join(f"[{role}] {turn['content']}" for role, turn in turns)
    return f"`{said}`".replace("\n", "⏎")


def read(folder: Path, kind: type[ChatDataModule], rows: list[Row], settings: dict[str, Any]) -> str:
    """What a data module of the rows reads, or why it refuses them."""
    module = make(folder, write(folder / "rows.jsonl", rows), kind, max_dropped_share=0.9, **settings)
    try:
        (part,) = module.parts("train")["train"]
        module.prepare_data()
        loaded = part.load(0.9)
    except ValueError as error:
        said = str(error)
        return f"dropped: {said}" if "dropped, " in said and "refuses" not in said else f"refused: {said}"
    steps = [step for row in part.source.rows for step in part.encoder.encode([row])]
    good = [shown(step.truncated.tokenized.rendered.record) for step in steps if not isinstance(step, DroppedRow)]
    assert len(good) == len(loaded.examples), "training has what the steps show"
    return " ".join([*good, *(f"dropped: {reason}" for reason in loaded.report.dropped)])


# case: F3 F4 F5 F7 F10 F11 F12
@pytest.mark.parametrize("shape", table("Chats"))
def test_chats(shape: str, tmp_path: Path) -> None:
    _check(read(tmp_path, ChatDataModule, *table("Chats")[shape][:2]), table("Chats")[shape][2])


# case: F3 F4 F7 F11 F12
@pytest.mark.parametrize("shape", table("Pairs"))
def test_pairs(shape: str, tmp_path: Path) -> None:
    _check(read(tmp_path, PreferenceDataModule, *table("Pairs")[shape][:2]), table("Pairs")[shape][2])


def _check(found: str, expected: str) -> None:
    """Exactly what the table says; of a data set that is refused or all dropped, its words are in the reason."""
    kind, _, words = expected.partition(": ")
    if kind in ("refused", "dropped"):
        assert found.startswith(kind)
        assert words in found
    else:
        assert found == expected
