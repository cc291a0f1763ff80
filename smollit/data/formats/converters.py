"""Rows -> Conversation, Preference or Text: the records of a row, and one function per format of chats."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from smollit.data.formats.detection.labels import check_labels
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.format import GROUPED, Fields, Format
from smollit.data.formats.groups import GROUP, from_thread, from_unpaired
from smollit.data.formats.messages.contents import parse_text
from smollit.data.formats.messages.dialogue import (
    is_open_dialogue,
    parse_dialogue,
    parse_dialogue_prompt,
    parse_dialogue_response,
)
from smollit.data.formats.messages.parse import parse_messages
from smollit.data.formats.messages.roles import OddTurns
from smollit.data.formats.pairs import (
    check_ends_with_assistant,
    from_preference,
    from_ranked,
    history_turns,
    indexed,
    make_pair,
    prompt_turns,
)
from smollit.data.formats.types import (
    Conversation,
    Message,
    Preference,
    Record,
    Records,
    Text,
    Variables,
    drop_nulls,
    make_conversation,
)
from smollit.data.formats.variables import parse_variables, without_foreign_nulls
from smollit.data.sources.files import Row
from smollit.data.sources.json_text import parse_line
from smollit.data.sources.readers import RAW

# What turns out of order are counted under, by what `odd_turns` says of them.
ODD_TURNS: dict[OddTurns, DropReason] = {
    "drop": DropReason.ROLE_ORDER,
    "merge": DropReason.NOT_MERGED,
    "error": DropReason.ROLE_ORDER_ERROR,
}


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


def to_records(row: Row, format: Format) -> Records:
    """The records of a decoded row: one or, of several responses or converted rows, several. Bad ones are among them.

    Raises:
        ValueError: If the user's function fails.
    """
    if format.name in GROUPED:
        return _try(_from_group, row[GROUP], format)
    if format.convert is None:
        return _try(_from_row, row, format)
    rows = format.convert(row)
    if not rows:
        return [BadRow(DropReason.NOT_CONVERTED, f"`{format.convert.name}` returns no row")]
    return [record for converted in rows for record in _try(_from_row, converted, format)]


def _try(read: Callable[[Any, Format], Records], row: Any, format: Format) -> Records:
    """The records that `read` finds, or the reason why there are none."""
    try:
        records = read(row, format)
    except RecursionError:
        records = [BadRow(DropReason.MALFORMED_MESSAGES, "lists or objects are nested too deeply")]
    except BadRow as bad:
        records = [bad]
    reason = ODD_TURNS[format.roles.odd_turns]
    return [
        BadRow(reason, record.detail)
        if isinstance(record, BadRow) and record.reason == DropReason.ROLE_ORDER
        else record
        for record in records
    ]


def _from_group(rows: list[Row], format: Format) -> Records:
    return from_thread(rows, format) if format.name == "thread" else from_unpaired(rows, format)


def _from_row(row: Row, format: Format) -> Records:
    for name in format.media:
        if row.get(name):
            raise BadRow(DropReason.NOT_TEXT, f"`{name}` is not empty, and only text can be read")
    check_labels(row, format.labels)
    fields = Fields(row, format.columns, format.roles, format.late)
    if format.name == "text":
        return [from_text(fields)]
    records, variables = _convert(fields, format), parse_variables(fields)
    return [_with_variables(record, variables) for record in records] if variables else records


def _with_variables(record: Record | BadRow, variables: Variables) -> Record | BadRow:
    """The record with what the template gets besides its messages, whose calls are those of its tools."""
    tools = variables.get("tools", [])
    match record:
        case Conversation():
            return replace(record, messages=without_foreign_nulls(record.messages, tools), variables=variables)
        case Preference():
            *prompt, chosen, rejected = without_foreign_nulls([*record.prompt, record.chosen, record.rejected], tools)
            return replace(record, prompt=prompt, chosen=chosen, rejected=rejected, variables=variables)
    return record


def _convert(fields: Fields, format: Format) -> Records:
    match format.name:
        case "messages" | "sharegpt":
            return [from_messages(fields)]
        case "prompt_completion":
            return [from_prompt_completion(fields)]
        case "alpaca":
            return [from_alpaca(fields)]
        case "dialogue":
            return [from_dialogue(fields) if format.kind == "chat" else from_dialogue_pair(fields)]
        case "ranked":
            return from_ranked(fields, format)
        case _:
            return from_preference(fields)


# ---- chats


def from_messages(fields: Fields) -> Conversation:
    """The chat in `messages`."""
    name = fields.name("messages")
    messages = parse_messages(fields.need("messages"), name, fields.roles)
    return _conversation(messages, indexed(name, messages), fields)


def from_prompt_completion(fields: Fields) -> Conversation:
    """`prompt` as context and `completion` with the loss: texts, messages or chats.

    If the prompt ends with an assistant turn, the completion continues it.
    """
    prompt = prompt_turns(fields)
    if not prompt:
        raise BadRow(DropReason.NO_PROMPT, f"`{fields.name('prompt')}` is missing or empty")
    # The assistant turns of the prompt are context, unless the row itself sets `train`.
    prompt = [{"train": False, **turn} if turn["role"] == "assistant" else turn for turn in prompt]
    name = fields.name("completion")
    completion = fields.turns("completion", "assistant")
    if is_open_dialogue(fields.get("prompt")):  # "Assistant:" and the response have a space between them
        completion = [turn | {"content": turn["content"].strip()} for turn in completion]
    check_ends_with_assistant(completion, name)
    where = [*indexed(fields.name("prompt"), prompt), *indexed(name, completion)]
    return _conversation([*prompt, *completion], where, fields, continued=len(prompt))


def from_alpaca(fields: Fields) -> Conversation:
    """User: `instruction`, and after an empty line `input` where it has text; assistant: `output`.

    The exchanges of `history` come before.
    """
    asked = asked_in_alpaca(fields)
    output = parse_text(fields.need("output"), fields.name("output"))
    before = history_turns(fields)
    messages = [*before, {"role": "user", "content": asked}, {"role": "assistant", "content": output}]
    where = [*indexed(fields.name("history"), before), fields.name("instruction"), fields.name("output")]
    return _conversation(messages, where, fields)


def asked_in_alpaca(fields: Fields) -> str:
    """The text of `instruction`, and after an empty line that of `input`.

    Raises:
        BadRow: If both are empty.
    """
    asked = "\n\n".join(filter(None, (fields.text("instruction"), fields.text("input"))))
    if not asked:
        raise BadRow(DropReason.NO_PROMPT, f"`{fields.name('instruction')}` is missing or empty")
    return asked


def from_dialogue(fields: Fields) -> Conversation:
    """The Human/Assistant dialogue in `text`."""
    name = fields.name("text")
    messages = parse_dialogue(parse_text(fields.need("text"), name), name)
    return _conversation(messages, indexed(name, messages), fields)


def from_text(fields: Fields) -> Text:
    """The plain text in `text`."""
    fields.need("text")
    text = fields.text("text")
    if not text:
        raise BadRow(DropReason.EMPTY_TEXT, f"`{fields.name('text')}` has no text")
    return Text(text)


def from_dialogue_pair(fields: Fields) -> Preference:
    """The pair in `chosen` and `rejected`: Human/Assistant dialogues, or the responses to the one in `prompt`."""
    names = (fields.name("chosen"), fields.name("rejected"))
    chosen, rejected = (
        parse_dialogue_response(parse_text(fields.need(part), name), name)
        for part, name in zip(("chosen", "rejected"), names, strict=True)
    )
    asked = fields.text("prompt")
    prompt = parse_dialogue_prompt(asked, fields.name("prompt")) if asked else []
    return make_pair(prompt, (chosen, rejected), names, fields)


# ---- helpers


def _conversation(
    messages: list[Message], where: list[str], fields: Fields, continued: int | None = None
) -> Conversation:
    conversation = make_conversation(messages, where, continued)
    return Conversation(add_system(conversation.messages, fields))


def add_system(messages: list[Message], fields: Fields) -> list[Message]:
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
