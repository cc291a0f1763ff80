"""Prompts of a file, without responses: what `predict --prompts` responds to."""

import hashlib
import json
from pathlib import Path

from datasets import Dataset

from smollit.data.batching.dataset import Examples
from smollit.data.formats.converters import add_system, asked_in_alpaca, decode_row
from smollit.data.formats.detection.split import Split
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.format import Fields, Parts
from smollit.data.formats.messages.parse import parse_messages
from smollit.data.formats.messages.roles import Roles
from smollit.data.formats.pairs import history_turns, prompt_turns
from smollit.data.formats.types import Message
from smollit.data.formats.variables import parse_variables
from smollit.data.sources.files import READABLE, Row, ending
from smollit.data.sources.readers import iter_file
from smollit.data.template.template import ChatTemplate

NEEDED = "a row needs `prompt` (a text, or messages) or `messages`"
NUM_HEAD_ROWS = 20  # rows whose columns tell where the prompt is


def prompt_examples(path: Path, template: ChatTemplate) -> Examples:
    """The prompts of a file as examples: each up to where the response starts.

    Rows are read as those of training: with the usual names of columns, tools, and switches of the template.

    Raises:
        ValueError: If the file is missing or empty, or rows hold no prompt, with their number and the first of them.
    """
    if not path.is_file():
        raise ValueError(f"`prompts` is {path}, which is not a file")
    if not ending(path):
        raise ValueError(f"`prompts` is {path}, but only {READABLE} can be read")
    texts, bad = [], []
    rows = list(iter_file(path))
    parts, roles = _parts_of(rows, path)
    for number, row in enumerate(rows):
        try:
            fields = Fields(decode_row(row), parts, roles)
            texts.append(template.prompt_text(read_prompt(fields), parse_variables(fields)))
        except BadRow as error:
            bad.append(f"row {number}: {error}")
    if bad or not texts:
        found = f"{len(bad):,} rows can't be used ({bad[0]})" if bad else "the file is empty"
        raise ValueError(f"`prompts` is {path}: {found}. {NEEDED[0].upper()}{NEEDED[1:]}")
    ids = template.encode(texts)
    columns = {"prompt_ids": ids, "row": list(range(len(ids))), "length": list(map(len, ids))}
    key = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return Examples([Dataset.from_dict(columns)], [len(ids)], [f"prompts-{key[:16]}"])


def read_prompt(fields: Fields) -> list[Message]:
    """The messages of a prompt; responses at its end are left out.

    Raises:
        BadRow: If there is none.
    """
    if value := fields.get("messages"):
        messages = parse_messages(value, fields.name("messages"), fields.roles)
    elif fields.get("instruction"):
        messages = [*history_turns(fields), {"role": "user", "content": asked_in_alpaca(fields)}]
    else:
        messages = prompt_turns(fields)
        if not messages:
            raise BadRow(DropReason.NO_PROMPT, NEEDED)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise BadRow(DropReason.NO_PROMPT, "there are only assistant turns")
    return add_system(messages, fields)


def _parts_of(rows: list[Row], path: Path) -> tuple[Parts, Roles]:
    """The column of each part, and how messages are written, by the first rows; a bad row is named when it is read."""
    head = []
    for row in rows[:NUM_HEAD_ROWS]:
        try:
            head.append(decode_row(row))
        except BadRow:
            continue
    columns = list(dict.fromkeys(name for row in head for name in row))
    split = Split(kind="chat", columns=columns, rows=head, mapping={}, extra_roles=(), where=str(path))
    parts = split.parts("chat")
    return parts, Roles(sharegpt=split.is_sharegpt(parts))
