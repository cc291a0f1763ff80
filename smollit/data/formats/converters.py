"""The parts of a row -> Conversation, Preference or Text: one function per format."""

import math
from dataclasses import dataclass
from typing import Any

from smollit.data.formats import dialogue
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.messages import Roles, parse_messages, parse_text, parse_turns
from smollit.data.formats.types import (
    Conversation,
    Message,
    Preference,
    Text,
    check_answer,
    check_order,
    make_conversation,
    shown,
)


@dataclass(frozen=True)
class Fields:
    """A row seen through its format.

    Args:
        row: Columns and their values.
        columns: Which column plays which part.
        roles: Which roles its messages may have.
    """

    row: dict[str, Any]
    columns: dict[str, str]
    roles: Roles

    def place(self, part: str) -> str:
        """The name of the column, for errors."""
        return self.columns.get(part, part)

    def get(self, part: str) -> Any:
        """The value, or None if the part has no column or the row no value."""
        column = self.columns.get(part)
        return None if column is None else self.row.get(column)

    def need(self, part: str) -> Any:
        """The value, which must not be null."""
        value = self.get(part)
        if value is None:
            have = ", ".join(sorted(map(shown, self.row))[:20]) or "none"
            name = self.place(part)
            raise BadRow(DropReason.MISSING_VALUE, f"the column `{name}` is null or missing (columns: {have})")
        return value

    def text(self, part: str) -> str:
        """The text, which is empty if the part has no column, the row no value, or only blanks."""
        value = self.get(part)
        text = "" if value is None else parse_text(value, self.place(part))
        return text if text.strip() else ""


# ---- chats


def from_messages(fields: Fields) -> Conversation:
    """The chat in `messages`."""
    name = fields.place("messages")
    messages = parse_messages(fields.need("messages"), name, fields.roles)
    return _conversation(messages, places(name, messages), fields)


def from_prompt_completion(fields: Fields) -> Conversation:
    """`prompt` as context and `completion` to train: texts, messages or chats.

    If the prompt ends with an assistant turn, the completion continues it.
    """
    prompt = prompt_turns(fields)
    if not prompt:
        raise BadRow(DropReason.NO_PROMPT, f"`{fields.place('prompt')}` is missing or empty")
    # The assistant's turns of the prompt are context, unless the row itself says otherwise.
    prompt = [{"train": False, **turn} if turn["role"] == "assistant" else turn for turn in prompt]
    name = fields.place("completion")
    completion = parse_turns(fields.need("completion"), "assistant", name, fields.roles)
    check_ends_with_answer(completion, name)
    where = [*places(fields.place("prompt"), prompt), *places(name, completion)]
    return _conversation([*prompt, *completion], where, fields, continued=len(prompt))


def from_alpaca(fields: Fields) -> Conversation:
    """User: `instruction`, and behind an empty line `input` where it has text; assistant: `output`."""
    asked = "\n\n".join(filter(None, (fields.text("instruction"), fields.text("input"))))
    if not asked:
        raise BadRow(DropReason.NO_PROMPT, f"`{fields.place('instruction')}` is missing or empty")
    answer = parse_text(fields.need("output"), fields.place("output"))
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return _conversation(messages, [fields.place("instruction"), fields.place("output")], fields)


def from_dialogue(fields: Fields) -> Conversation:
    """The Human/Assistant dialogue in `text`."""
    name = fields.place("text")
    messages = dialogue.parse_dialogue(parse_text(fields.need("text"), name), name)
    return _conversation(messages, places(name, messages), fields)


def from_text(fields: Fields) -> Text:
    """The plain text in `text`."""
    fields.need("text")
    text = fields.text("text")
    if not text:
        raise BadRow(DropReason.EMPTY_TEXT, f"`{fields.place('text')}` has no text")
    return Text(text)


# ---- pairs


def from_preference(fields: Fields) -> Preference:
    """The pair in `chosen` and `rejected`: texts, messages, or whole conversations that repeat the prompt."""
    chosen, rejected = (
        parse_turns(fields.need(part), "assistant", fields.place(part), fields.roles) for part in ("chosen", "rejected")
    )
    return _preference(prompt_turns(fields), chosen, rejected, fields)


def from_dialogue_pair(fields: Fields) -> Preference:
    """The pair in `chosen` and `rejected`: Human/Assistant dialogues, or the answers to the one in `prompt`."""
    chosen, rejected = (
        dialogue.parse_answer(parse_text(fields.need(part), fields.place(part)), fields.place(part))
        for part in ("chosen", "rejected")
    )
    asked = fields.text("prompt")
    prompt = dialogue.parse_prompt(asked, fields.place("prompt")) if asked else []
    return _preference(prompt, chosen, rejected, fields)


def score_gap(fields: Fields) -> float | None:
    """`score_chosen` minus `score_rejected`; None if one of them is missing."""
    chosen, rejected = (_score(fields.get(part), fields.place(part)) for part in ("score_chosen", "score_rejected"))
    return None if chosen is None or rejected is None else chosen - rejected


# ---- helpers


def prompt_turns(fields: Fields) -> list[Message]:
    """The turns of `prompt`: a text is one user turn; nothing is an empty list."""
    value = fields.get("prompt")
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    return parse_turns(value, "user", fields.place("prompt"), fields.roles)


def places(name: str, messages: list[Message]) -> list[str]:
    """Where the messages of a column stand: "messages[0]", "messages[1]", ..."""
    return [f"{name}[{index}]" for index in range(len(messages))]


def check_ends_with_answer(turns: list[Message], name: str) -> None:
    """The last turn is the assistant's, and has a text."""
    if turns[-1]["role"] != "assistant":
        role = shown(turns[-1]["role"])
        raise BadRow(DropReason.NOT_AN_ASSISTANT_TURN, f"`{name}` must end with role 'assistant', got {role}")
    check_answer(turns[-1], name)


def _conversation(
    messages: list[Message], where: list[str], fields: Fields, continued: int | None = None
) -> Conversation:
    conversation = make_conversation(messages, where, continued)
    return Conversation(_add_system(conversation.messages, fields))


def _preference(prompt: list[Message], chosen: list[Message], rejected: list[Message], fields: Fields) -> Preference:
    """A pair, once the repeated prompt is cut off after a check that it is the same everywhere."""
    names = [fields.place(part) for part in ("prompt", "chosen", "rejected")]
    check_ends_with_answer(chosen, names[1])
    check_ends_with_answer(rejected, names[2])
    repeated = chosen[:-1]
    if repeated != rejected[:-1]:
        raise BadRow(
            DropReason.PROMPTS_DIFFER, f"the turns before the answer are not the same in {names[1]} and {names[2]}"
        )
    if not prompt and not repeated:
        raise BadRow(DropReason.NO_PROMPT, f"there is no `{names[0]}`, and `{names[1]}` has no turns before the answer")
    if prompt and repeated and not _same_turns(prompt, repeated):
        raise BadRow(DropReason.PROMPTS_DIFFER, f"`{names[0]}` is not what {names[1]} and {names[2]} begin with")
    turns = repeated or prompt
    name = names[1] if repeated else names[0]
    check_order([*turns, chosen[-1]], [*places(name, turns), names[1]], continued=len(turns))
    return Preference(_add_system(turns, fields), chosen[-1], rejected[-1], score_gap(fields))


def _add_system(messages: list[Message], fields: Fields) -> list[Message]:
    """The messages behind the text of `system`, if that has one."""
    text = fields.text("system")
    if not text:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    if messages[0]["content"] != text:
        raise BadRow(
            DropReason.TWO_SYSTEM_TEXTS, f"`{fields.place('system')}` is not the system text that the chat begins with"
        )
    return messages


def _same_turns(one: list[Message], other: list[Message]) -> bool:
    """Equal, but for a system message that only one of them has."""
    return [turn for turn in one if turn["role"] != "system"] == [turn for turn in other if turn["role"] != "system"]


def _score(value: Any, name: str) -> float | None:
    """A score from a number or its text; None if it is null or an empty cell."""
    if value is None or value == "":
        return None
    try:
        score = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise BadRow(DropReason.MALFORMED_SCORE, f"`{name}` must be a number, got {shown(value)}")
    return score
