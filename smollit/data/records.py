"""A row of a known schema -> Conversation | Preference, or the reason why not."""

import json
import re
from dataclasses import dataclass
from typing import Any

# A text that is a list of messages, in JSON as CSV files have it, or (an error) as Python prints it.
WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
ROLES = ("system", "user", "assistant", "tool")
NEEDED = {"chat": ("messages",), "preference": ("chosen", "rejected")}
PLURAL = {"chat": "chats", "preference": "preference pairs"}
MODULES = {"chat": "UltraChatDataModule", "preference": "UltraFeedbackDataModule"}
Message = dict[str, Any]  # role, content, and what else the row gives that is not null


class BadRow(ValueError):
    """A row that can't be used.

    Args:
        cause: What rows are counted under, such as "empty answer".
        detail: Where in the row and what came, such as "messages[1].content is null".
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


@dataclass(frozen=True)
class Conversation:
    """A chat with at least one assistant turn."""

    messages: list[Message]


@dataclass(frozen=True)
class Preference:
    """A prompt and two assistant turns, of which the first is preferred."""

    prompt: list[Message]
    chosen: Message
    rejected: Message


def to_conversation(row: dict[str, Any]) -> Conversation:
    """The chat in the column `messages`.

    Raises:
        BadRow: If it is missing, empty, malformed, or holds no assistant turn.
    """
    messages = parse_messages(_column(row, "messages"), "messages")
    check_order(messages, "messages")
    for index, message in enumerate(messages):
        check_answer(message, f"messages[{index}]")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no assistant turn", "`messages` holds no message with role 'assistant'")
    return Conversation(messages)


def to_preference(row: dict[str, Any]) -> Preference:
    """The pair in the columns `chosen` and `rejected`, with `prompt` or the turns before the answer as its prompt.

    Answers may be texts, one assistant message, or whole conversations that repeat the prompt: the repeated turns are
    cut off after a check that they are equal.

    Raises:
        BadRow: If a column is missing or malformed, the prompts differ, or an answer is not an assistant turn.
    """
    chosen_prompt, chosen = split_answer(_column(row, "chosen"), "chosen")
    rejected_prompt, rejected = split_answer(_column(row, "rejected"), "rejected")
    if chosen_prompt != rejected_prompt:
        raise BadRow("prompts differ", "the turns before the answer are not the same in `chosen` and `rejected`")
    prompt = parse_prompt(row.get("prompt")) or chosen_prompt
    if not prompt:
        raise BadRow("no prompt", "there is no `prompt`, and `chosen` has no turns before the answer")
    if chosen_prompt and not _same_turns(prompt, chosen_prompt):
        raise BadRow("prompts differ", "`prompt` is not what `chosen` and `rejected` begin with")
    prompt = chosen_prompt or prompt
    check_order([*prompt, chosen], "prompt")
    return Preference(prompt, chosen, rejected)


def check_columns(columns: list[str], kind: str, where: str) -> None:
    """Refuse data of another kind at once, rather than row by row.

    Raises:
        ValueError: If a column that every row of this kind needs is missing.
    """
    missing = [name for name in NEEDED[kind] if name not in columns]
    if not missing:
        return
    other = next((name for name, needed in NEEDED.items() if name != kind and set(needed) <= set(columns)), None)
    hint = f". These are {PLURAL[other]}: use {MODULES[other]}" if other else ""
    raise ValueError(
        f"{where} has the columns {', '.join(columns) or '(none)'}, but {PLURAL[kind]} need"
        f" {' and '.join(f'`{name}`' for name in NEEDED[kind])}{hint}"
    )


def parse_prompt(value: Any) -> list[Message]:
    """The column `prompt`: a text is one user turn, a list is a chat; nothing is an empty list."""
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str) and not WRITTEN_MESSAGES.match(value):
        return [{"role": "user", "content": value}]
    return parse_messages(value, "prompt")


def split_answer(value: Any, where: str) -> tuple[list[Message], Message]:
    """An answer and the turns before it; a text has none."""
    if isinstance(value, str) and not WRITTEN_MESSAGES.match(value):
        messages: list[Message] = [{"role": "assistant", "content": value}]
    else:
        messages = parse_messages(value, where)
    answer = messages[-1]
    if answer["role"] != "assistant":
        raise BadRow(
            "answer is not an assistant turn", f"`{where}` must end with role 'assistant', got {answer['role']!r}"
        )
    check_answer(answer, where)
    return messages[:-1], answer


def parse_messages(value: Any, where: str) -> list[Message]:
    """A list of messages, or its JSON text (as in CSV), with contents as plain text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRow("malformed messages", f"`{where}` is a text that is not JSON ({error})") from error
    if not isinstance(value, list):
        raise BadRow("malformed messages", f"`{where}` must be a list of messages, got {type(value).__name__}")
    if not value:
        raise BadRow("empty conversation", f"`{where}` is an empty list")
    return [parse_message(message, f"{where}[{index}]") for index, message in enumerate(value)]


def parse_message(message: Any, where: str) -> Message:
    """One message with a known role and its content as text; keys that are null are left out."""
    if not isinstance(message, dict):
        raise BadRow("malformed messages", f"{where} must have `role` and `content`, got {type(message).__name__}")
    kept = {key: value for key, value in message.items() if value is not None}
    role = kept.get("role")
    if role not in ROLES:
        raise BadRow("unknown role", f"{where}.role is {role!r}, expected one of {', '.join(ROLES)}")
    return {**kept, "role": role, "content": _text(kept.get("content"), f"{where}.content", kept)}


def check_order(messages: list[Message], where: str) -> None:
    """System text stands first; user and assistant turns do not follow their own kind."""
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and index > 0:
            raise BadRow("odd role order", f"{where}[{index}] is a system message, but not the first")
        if index > 0 and role in ("user", "assistant") and role == messages[index - 1]["role"]:
            raise BadRow("odd role order", f"{where}[{index - 1}] and [{index}] are both {role} turns")


def check_answer(message: Message, where: str) -> None:
    """An assistant turn has a text, or calls tools."""
    if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
        raise BadRow("empty answer", f"{where}.content has no text, {message['content']!r:.20}")


def drop_nulls(value: Any) -> Any:
    """The value without keys that are null, at any depth."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list) else value


def _text(content: Any, where: str, message: Message) -> str:
    if content is None:
        if message.get("tool_calls"):
            return ""
        raise BadRow("null content", f"{where} is null or missing")
    if isinstance(content, list):
        return "".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise BadRow("content is not text", f"{where} must be text, got {type(content).__name__}: {content!r:.40}")
    return content


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadRow("content is not text", f"{where} is a part of type {kind!r}, and only text parts can be trained")


def _same_turns(one: list[Message], other: list[Message]) -> bool:
    """Equal, but for a system message that only one of them has."""
    return [turn for turn in one if turn["role"] != "system"] == [turn for turn in other if turn["role"] != "system"]


def _column(row: dict[str, Any], name: str) -> Any:
    if row.get(name) is None:
        have = ", ".join(sorted(row)) or "none"
        raise BadRow(f"no `{name}`", f"the column `{name}` is null or missing (columns: {have})")
    return row[name]
