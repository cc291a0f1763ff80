"""What a message holds besides its role: its text, its tool calls, and whether it counts in the loss."""

import json
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.messages.shapes import decode
from smollit.data.formats.types import Message, shown

# `weight` is OpenAI's, `training` axolotl's, `loss` ms-swift's, `output_with_loss` XTuner's.
LOSS_KEYS = ("train", "weight", "training", "loss", "output_with_loss")
TEXT_PARTS = ("text", "input_text", "output_text")  # types of parts that hold text; the last two are OpenAI's


def parse_content(content: Any, where: str, message: Message, role: str) -> str:
    """A text, or the joined texts of a list of text parts; null beside tool calls is the empty text.

    What a tool returns may be any value: it is its JSON text.
    """
    if content is None:
        if message.get("tool_calls"):
            return ""
        have = ", ".join(sorted(map(shown, message))[:8])
        raise BadRow(DropReason.NULL_CONTENT, f"{where} is null or missing (keys: {have})")
    is_parts = isinstance(content, list) and not any(isinstance(part, dict) and not _is_part(part) for part in content)
    if role == "tool" and not isinstance(content, str) and not is_parts:
        return json.dumps(content, ensure_ascii=False, default=str)
    if isinstance(content, list):
        return "".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(content))
    return parse_text(content, where)


def parse_text(value: Any, where: str) -> str:
    """The value, which must be a text."""
    if not isinstance(value, str):
        raise BadRow(DropReason.NOT_TEXT, f"{where} must be text, got {shown(value)}")
    return value


def parse_calls(message: Message, where: str) -> Message:
    """The message with its tool calls as a list of objects; some data sets write one object, or their JSON text.

    Raises:
        BadRow: If they are neither.
    """
    if isinstance(message.get("function_call"), dict):  # OpenAI's name for a single tool call, until 2023
        call = {"type": "function", "function": message["function_call"]}
        return {key: value for key, value in message.items() if key != "function_call"} | {"tool_calls": [call]}
    calls = message.get("tool_calls")
    if calls is None:
        return message
    return message | {"tool_calls": parse_objects(calls, f"{where}.tool_calls", "calls")}


def parse_objects(value: Any, where: str, what: str) -> list[dict[str, Any]]:
    """A list of objects, one object, or the JSON text of either; an empty text is an empty list.

    Raises:
        BadRow: If it is something else.
    """
    if isinstance(value, str):
        value = decode(value, where, DropReason.MALFORMED_TOOLS) if value.strip() else []
    items = ([value] if value else []) if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise BadRow(
            DropReason.MALFORMED_TOOLS, f"{where} must be a list of {what}, or its JSON text, got {shown(value)}"
        )
    items = [
        decode(item, f"{where}[{index}]", DropReason.MALFORMED_TOOLS) if isinstance(item, str) else item
        for index, item in enumerate(items)
    ]
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise BadRow(DropReason.MALFORMED_TOOLS, f"{where}[{index}] must be an object, got {shown(item)}")
    return items


def parse_train(message: Message, where: str) -> dict[str, bool]:
    """{"train": whether the message has loss tokens}, from one of `LOSS_KEYS`; empty if the row has none.

    A weight of 0 takes a message out of the loss; a weight of 1 is the default, and changes nothing.
    """
    said = {key: message[key] for key in loss_keys(message)}
    for key, value in said.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise BadRow(DropReason.MALFORMED_WEIGHT, f"{where}.{key} must be true, false, 1 or 0, got {shown(value)}")
    wanted = {bool(value) for value in said.values()}
    if len(wanted) > 1:
        raise BadRow(DropReason.MALFORMED_WEIGHT, f"{' and '.join(f'{where}.{key}' for key in said)} disagree")
    return {"train": wanted.pop()} if said.keys() - {"weight"} or wanted == {False} else {}


def loss_keys(message: Message) -> list[str]:
    """The keys of a message that say whether it counts in the loss; `loss` may be a number that says something else."""
    found = [key for key in LOSS_KEYS if key in message]
    return [key for key in found if key in ("train", "weight") or isinstance(message[key], bool)]


# ---- helpers


def _is_part(part: dict[str, Any]) -> bool:
    return "type" in part or part.keys() == {"text"}


def _part_text(part: Any, where: str) -> str:
    kind = part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or kind not in TEXT_PARTS:
        raise BadRow(DropReason.NOT_TEXT, f"{where} is a part of type {shown(kind)}, and only text parts are supported")
    text = part.get("text", part.get("value"))
    if isinstance(text, str):
        return text
    have = ", ".join(sorted(map(shown, part)))
    raise BadRow(DropReason.NOT_TEXT, f"{where} is a part of type {kind!r} without a `text` (keys: {have})")
