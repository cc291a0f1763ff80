"""Rows -> Conversation, Preference or Text: one function per format."""

import math
from dataclasses import replace
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.format import Fields, Format
from smollit.data.formats.messages import (
    parse_dialogue,
    parse_dialogue_prompt,
    parse_dialogue_response,
    parse_messages,
    parse_text,
)
from smollit.data.formats.types import (
    Conversation,
    Message,
    Preference,
    Text,
    check_not_empty,
    check_order,
    drop_nulls,
    make_conversation,
    shown,
)
from smollit.data.formats.variables import parse_variables
from smollit.data.sources.files import Row, parse_line
from smollit.data.sources.readers import RAW


def decode_row(row: Row) -> Row:
    """The columns of a row as a source gives it: those of its JSON text, else its own without the nulls inside them.

    Arrow fills missing keys with nulls; in JSON a null is the author's.

    Raises:
        BadRow: If the text is not a JSON object.
    """
    if RAW not in row:
        return {name: drop_nulls(value) for name, value in row.items()}
    try:
        return parse_line(row[RAW])
    except ValueError as error:
        raise BadRow(DropReason.MALFORMED_JSON, str(error)) from error


def to_record(row: Row, format: Format) -> Conversation | Preference | Text:
    """The record of a decoded row.

    Raises:
        BadRow: If it is malformed in any way.
    """
    row = format.convert(row) if format.convert else row
    try:
        fields = Fields(row, format.columns, format.roles)
        record, variables = _convert(fields, format), parse_variables(fields)
        return replace(record, variables=variables) if variables and not isinstance(record, Text) else record
    except RecursionError as error:
        raise BadRow(DropReason.MALFORMED_MESSAGES, "lists or objects are nested too deeply") from error


def _convert(fields: Fields, format: Format) -> Conversation | Preference | Text:
    match format.name:
        case "messages" | "sharegpt":
            return from_messages(fields)
        case "prompt_completion":
            return from_prompt_completion(fields)
        case "alpaca":
            return from_alpaca(fields)
        case "text":
            return from_text(fields)
        case "dialogue" if format.kind == "chat":
            return from_dialogue(fields)
        case "dialogue":
            return from_dialogue_pair(fields)
        case _:
            return from_preference(fields)


# ---- chats


def from_messages(fields: Fields) -> Conversation:
    """The chat in `messages`."""
    name = fields.name("messages")
    messages = parse_messages(fields.need("messages"), name, fields.roles)
    return _conversation(messages, _indexed(name, messages), fields)


def from_prompt_completion(fields: Fields) -> Conversation:
    """`prompt` as context and `completion` with the loss: texts, messages or chats.

    If the prompt ends with an assistant turn, the completion continues it.
    """
    prompt = _prompt_turns(fields)
    if not prompt:
        raise BadRow(DropReason.NO_PROMPT, f"`{fields.name('prompt')}` is missing or empty")
    # The assistant turns of the prompt are context, unless the row itself sets `train`.
    prompt = [{"train": False, **turn} if turn["role"] == "assistant" else turn for turn in prompt]
    name = fields.name("completion")
    completion = fields.turns("completion", "assistant")
    _check_ends_with_assistant(completion, name)
    where = [*_indexed(fields.name("prompt"), prompt), *_indexed(name, completion)]
    return _conversation([*prompt, *completion], where, fields, continued=len(prompt))


def from_alpaca(fields: Fields) -> Conversation:
    """User: `instruction`, and after an empty line `input` where it has text; assistant: `output`."""
    asked = "\n\n".join(filter(None, (fields.text("instruction"), fields.text("input"))))
    if not asked:
        raise BadRow(DropReason.NO_PROMPT, f"`{fields.name('instruction')}` is missing or empty")
    output = parse_text(fields.need("output"), fields.name("output"))
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]
    return _conversation(messages, [fields.name("instruction"), fields.name("output")], fields)


def from_dialogue(fields: Fields) -> Conversation:
    """The Human/Assistant dialogue in `text`."""
    name = fields.name("text")
    messages = parse_dialogue(parse_text(fields.need("text"), name), name)
    return _conversation(messages, _indexed(name, messages), fields)


def from_text(fields: Fields) -> Text:
    """The plain text in `text`."""
    fields.need("text")
    text = fields.text("text")
    if not text:
        raise BadRow(DropReason.EMPTY_TEXT, f"`{fields.name('text')}` has no text")
    return Text(text)


# ---- pairs


def from_preference(fields: Fields) -> Preference:
    """The pair in `chosen` and `rejected`: texts, messages, or whole conversations that repeat the prompt."""
    chosen, rejected = (fields.turns(part, "assistant") for part in ("chosen", "rejected"))
    return _preference(_prompt_turns(fields), chosen, rejected, fields)


def from_dialogue_pair(fields: Fields) -> Preference:
    """The pair in `chosen` and `rejected`: Human/Assistant dialogues, or the responses to the one in `prompt`."""
    chosen, rejected = (
        parse_dialogue_response(parse_text(fields.need(part), fields.name(part)), fields.name(part))
        for part in ("chosen", "rejected")
    )
    asked = fields.text("prompt")
    prompt = parse_dialogue_prompt(asked, fields.name("prompt")) if asked else []
    return _preference(prompt, chosen, rejected, fields)


# ---- helpers


def _prompt_turns(fields: Fields) -> list[Message]:
    """The turns of `prompt`: a text is one user turn; an empty value is an empty list."""
    value = fields.get("prompt")
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    return fields.turns("prompt", "user")


def _indexed(name: str, messages: list[Message]) -> list[str]:
    """Where the messages of a column are: "messages[0]", "messages[1]", ..."""
    return [f"{name}[{index}]" for index in range(len(messages))]


def _check_ends_with_assistant(turns: list[Message], name: str) -> None:
    if turns[-1]["role"] != "assistant":
        role = shown(turns[-1]["role"])
        raise BadRow(DropReason.NOT_AN_ASSISTANT_TURN, f"`{name}` must end with role 'assistant', got {role}")
    check_not_empty(turns[-1], name)


def _conversation(
    messages: list[Message], where: list[str], fields: Fields, continued: int | None = None
) -> Conversation:
    conversation = make_conversation(messages, where, continued)
    return Conversation(_add_system(conversation.messages, fields))


def _preference(prompt: list[Message], chosen: list[Message], rejected: list[Message], fields: Fields) -> Preference:
    """A pair; a prompt that the responses repeat must be the same everywhere, and is removed from them."""
    in_prompt, in_chosen, in_rejected = (fields.name(part) for part in ("prompt", "chosen", "rejected"))
    _check_ends_with_assistant(chosen, in_chosen)
    _check_ends_with_assistant(rejected, in_rejected)
    repeated = chosen[:-1]
    differ = ""
    if repeated != rejected[:-1]:
        differ = f"the turns before the response are not the same in {in_chosen} and {in_rejected}"
    elif prompt and repeated and not _same_turns(prompt, repeated):
        differ = f"`{in_prompt}` is not what {in_chosen} and {in_rejected} begin with"
    if differ:
        raise BadRow(DropReason.PROMPTS_DIFFER, differ)
    turns = repeated or prompt
    if not turns:
        raise BadRow(
            DropReason.NO_PROMPT, f"there is no `{in_prompt}`, and `{in_chosen}` has no turns before the response"
        )
    where = _indexed(in_chosen if repeated else in_prompt, turns)
    check_order([*turns, chosen[-1]], [*where, in_chosen], continued=len(turns))
    return Preference(_add_system(turns, fields), chosen[-1], rejected[-1], _score_gap(fields))


def _add_system(messages: list[Message], fields: Fields) -> list[Message]:
    """The messages after the text of `system`, if that has one."""
    text = fields.text("system")
    if not text:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    if messages[0]["content"] != text:
        raise BadRow(
            DropReason.TWO_SYSTEM_TEXTS, f"`{fields.name('system')}` is not the system text that the chat begins with"
        )
    return messages


def _same_turns(one: list[Message], other: list[Message]) -> bool:
    """Whether two prompts are equal, except for a system message that only one of them has."""
    return [turn for turn in one if turn["role"] != "system"] == [turn for turn in other if turn["role"] != "system"]


def _score_gap(fields: Fields) -> float | None:
    """`score_chosen` minus `score_rejected`; None if one of them is missing."""
    chosen, rejected = (_score(fields.get(part), fields.name(part)) for part in ("score_chosen", "score_rejected"))
    return None if chosen is None or rejected is None else chosen - rejected


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
