"""Lists of messages, one message, and turns that are a text -> messages with a known role and their content as text."""

from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.messages.contents import loss_keys, parse_calls, parse_content, parse_train
from smollit.data.formats.messages.roles import ROLES, Roles
from smollit.data.formats.messages.shapes import decode, from_columns, from_exchanges, is_written, merge_odd_turns
from smollit.data.formats.types import Message, shown

PLAIN = {"role", "content"}  # the keys of a message that is no more than a text


def parse_messages(value: Any, where: str, roles: Roles) -> list[Message]:
    """A list of messages, or its text (as in CSV), with contents as plain text.

    Raises:
        BadRow: If it is no list, empty, or one of the messages is malformed.
    """
    if isinstance(value, str):
        value = decode(value, where) if value.strip() else []
    value = from_columns(value)
    if not isinstance(value, list):
        raise BadRow(DropReason.MALFORMED_MESSAGES, f"{where} must be a list of messages, got {shown(value)}")
    if not value:
        raise BadRow(DropReason.EMPTY_CONVERSATION, f"{where} is an empty list")
    value = from_exchanges(value) or value
    messages = [parse_message(message, f"{where}[{index}]", roles) for index, message in enumerate(value)]
    return merge_odd_turns(messages) if roles.odd_turns == "merge" else messages


def parse_turns(value: Any, role: str, where: str, roles: Roles) -> list[Message]:
    """Turns from a text (one turn of `role`), one message, or a list of messages."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        if not is_written(value):
            return [{"role": role, "content": value}]
        value = decode(value, where)
    value = from_columns(value)
    if isinstance(value, dict):
        return [parse_message(value, where, roles)]
    if not isinstance(value, list):
        raise BadRow(DropReason.NOT_TEXT, f"{where} must be text, or messages, got {shown(value)}")
    if value and all(isinstance(item, str) for item in value):
        raise BadRow(
            DropReason.MALFORMED_MESSAGES,
            f"{where} is a list of {len(value)} texts: `data.columns` can take one ({where}.0), or make pairs of them"
            " as `responses` with `chosen_if`",
        )
    return parse_messages(value, where, roles)


def parse_message(message: Any, where: str, roles: Roles) -> Message:
    """One message with a known role and its content as text; keys that are null are left out."""
    if not isinstance(message, dict):
        raise BadRow(DropReason.MALFORMED_MESSAGES, f"{where} must have `role` and `content`, got {shown(message)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if kept.keys() == PLAIN and kept["role"] in ROLES and isinstance(kept["content"], str):
        return kept  # as most messages are
    if "from" in kept and "role" not in kept and not roles.sharegpt:
        raise BadRow(DropReason.UNKNOWN_ROLE, f"{where} has no `role` but `from`: `data.format: sharegpt` reads it")
    role_key, content_key = roles.keys(kept)
    if role_key not in kept:
        have = ", ".join(sorted(map(shown, kept))[:8]) or "none"
        raise BadRow(DropReason.UNKNOWN_ROLE, f"{where}.{role_key} is null or missing (keys: {have})")
    role = roles.read(kept[role_key], f"{where}.{role_key}")
    kept = parse_calls(kept, where)
    content = parse_content(kept.get(content_key), f"{where}.{content_key}", kept, role)
    read = {role_key, content_key, *loss_keys(kept)}
    other = {key: value for key, value in kept.items() if key not in read}
    return {"role": role, "content": content, **other, **parse_train(kept, where)}
