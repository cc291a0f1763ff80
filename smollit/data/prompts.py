"""Prompts of a file, without responses: what `predict --prompts` responds to."""

import hashlib
import json
from pathlib import Path

from datasets import Dataset

from smollit.data.batching.dataset import Examples
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.messages import Roles, parse_messages
from smollit.data.formats.types import Message
from smollit.data.sources.files import Row
from smollit.data.sources.readers import RAW, iter_file
from smollit.data.template.template import ChatTemplate

NEEDED = "a row needs `prompt` (a text, or messages) or `messages`"


def prompt_examples(path: Path, template: ChatTemplate) -> Examples:
    """The prompts of a file as examples: each up to where the response starts.

    Raises:
        ValueError: If the file is missing or empty, or rows hold no prompt, with their number and the first of them.
    """
    if not path.is_file():
        raise ValueError(f"`prompts` is {path}, which is not a file")
    texts, bad = [], []
    for number, row in enumerate(iter_file(path)):
        try:
            texts.append(template.prompt_text(read_prompt(row)))
        except BadRow as error:
            bad.append(f"row {number}: {error}")
    if bad or not texts:
        found = f"{len(bad):,} rows can't be used ({bad[0]})" if bad else "the file is empty"
        raise ValueError(f"`prompts` is {path}: {found}. {NEEDED[0].upper()}{NEEDED[1:]}")
    ids = template.encode(texts)
    rows = {"prompt_ids": ids, "row": list(range(len(ids))), "length": list(map(len, ids))}
    key = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return Examples([Dataset.from_dict(rows)], [len(ids)], [f"prompts-{key[:16]}"])


def read_prompt(row: Row) -> list[Message]:
    """The messages of a prompt; responses at its end are left out.

    Raises:
        BadRow: If there is none.
    """
    if RAW in row:
        try:
            row = json.loads(row[RAW])
        except json.JSONDecodeError as error:
            raise BadRow(DropReason.MALFORMED_JSON, str(error)) from error
    value = (row.get("messages") or row.get("prompt")) if isinstance(row, dict) else None
    if not value:
        raise BadRow(DropReason.NO_PROMPT, NEEDED)
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages = parse_messages(value, "messages", Roles())
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise BadRow(DropReason.NO_PROMPT, "there are only assistant turns")
    return messages
