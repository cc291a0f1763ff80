"""Which format a split has, recognised from its columns and first rows or said in the config; rows -> records."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from smollit.data.formats import converters
from smollit.data.formats.dialogue import is_dialogue
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.layouts import (
    SCORES,
    FormatName,
    Parts,
    find_parts,
    fitting,
    listed,
    parts_of,
    read_mapping,
    why_not,
)
from smollit.data.formats.messages import ALIASES, ROLES, WRITTEN_MESSAGES, Roles, find_messages, is_sharegpt
from smollit.data.formats.types import Conversation, Kind, Preference, Text

CHATS = ("messages", "prompt", "completion", "chosen", "rejected")  # parts that may be messages
PROMPT_LIKE = ("question", "instruction", "query", "input", "conversations", "messages")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Format:
    """How the rows of a split are read.

    Args:
        name: The format.
        kind: What its rows become.
        columns: Which column plays which part, such as {"messages": "conversations"}.
        roles: Which roles its messages may have, and whether ShareGPT's keys and names are read.
        seen: Names of roles in the first rows that are read as other roles.
        left: Columns that are left alone.
    """

    name: FormatName
    kind: Kind
    columns: Parts
    roles: Roles = field(default_factory=Roles)
    seen: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def extra_roles(self) -> tuple[str, ...]:
        """Roles that the user lists besides system, user, assistant and tool."""
        return self.roles.extra

    @property
    def has_scores(self) -> bool:
        """Whether pairs have the columns of both scores."""
        return self.columns.keys() >= set(SCORES)

    def describe(self) -> str:
        """One sentence that tells the user how the rows are read."""
        said = [_how(self)]
        if self.seen:
            said.append("roles " + ", ".join(f"{name} -> {ALIASES[name.strip().lower()]}" for name in self.seen))
        if "system" in self.columns:
            said.append(f"system text from `{self.columns['system']}`")
        if self.has_scores:
            said.append("scores from " + " and ".join(f"`{self.columns[part]}`" for part in SCORES))
        if self.extra_roles:
            said.append("extra roles " + ", ".join(self.extra_roles))
        if self.left:
            said.append("columns left alone: " + listed(self.left))
        return "; ".join(said)


def to_record(row: dict[str, Any], format: Format) -> Conversation | Preference | Text:
    """What a row becomes.

    Raises:
        BadRow: If it is malformed in any way.
    """
    fields = converters.Fields(row, format.columns, format.roles)
    try:
        return _convert(fields, format)
    except RecursionError as error:
        raise BadRow(DropReason.MALFORMED_MESSAGES, "lists or objects are nested too deeply") from error


def recognise(
    columns: list[str],
    rows: Rows,
    kind: Kind,
    format: FormatName = "auto",
    mapping: dict[str, str] | None = None,
    extra_roles: Iterable[str] = (),
    where: str = "the data set",
) -> Format:
    """The format of a split.

    Args:
        columns: Names of its columns.
        rows: Its first rows: they tell ShareGPT from messages, and dialogues from other texts.
        kind: What its rows must become.
        format: The format that the user wants, or `auto`.
        mapping: {part: column} for columns that are not named after their part; "" for a part not to be used.
        extra_roles: Roles that messages may have besides system, user, assistant and tool.
        where: What errors call the split.

    Raises:
        ValueError: If no format fits, with the columns, what each format needs, and what to do.
    """
    wanted = read_mapping(mapping or {}, columns, where)
    parts, extra = find_parts(kind, columns, wanted), tuple(extra_roles)
    fits = fitting(kind, columns, wanted)
    if format == "auto":
        name = next((name for name in fits if _looks_like(name, kind, rows, parts, extra)), None)
    else:
        name = format if format in fits else None
    if name is None:
        raise ValueError(why_not(columns, kind, format, wanted, where))
    used = _paired_scores({part: parts[part] for part in parts_of(kind, name) if part in parts}, wanted)
    if kind == "preference":
        _check_prompt(rows, used, columns, where)
    roles = Roles(extra, name == "sharegpt" or (name != "messages" and _is_sharegpt(rows, used, extra)))
    left = tuple(column for column in columns if column not in used.values())
    return Format(name, kind, used, roles, _renamed(rows, used, roles), left)


def _convert(fields: converters.Fields, format: Format) -> Conversation | Preference | Text:
    match format.name:
        case "messages" | "sharegpt":
            return converters.from_messages(fields)
        case "prompt_completion":
            return converters.from_prompt_completion(fields)
        case "alpaca":
            return converters.from_alpaca(fields)
        case "text":
            return converters.from_text(fields)
        case "dialogue" if format.kind == "chat":
            return converters.from_dialogue(fields)
        case "dialogue":
            return converters.from_dialogue_pair(fields)
        case _:
            return converters.from_preference(fields)


# ---- what the first rows show


def _looks_like(name: FormatName, kind: Kind, rows: Rows, parts: Parts, extra: tuple[str, ...]) -> bool:
    """Whether the rows do not speak against a format that fits the columns."""
    if name == "sharegpt":
        return _is_sharegpt(rows, {"messages": parts["messages"]}, extra)
    if name == "dialogue":
        texts = [text for text in _values(rows, parts["text" if kind == "chat" else "chosen"]) if text != ""]
        return 2 * sum(map(is_dialogue, texts)) > len(texts)
    return True


def _values(rows: Rows, column: str) -> list[Any]:
    return [row[column] for row in rows if row.get(column) is not None]


def _messages(rows: Rows, parts: Parts) -> list[dict[str, Any]]:
    columns = [column for part, column in parts.items() if part in CHATS]
    return [message for column in columns for value in _values(rows, column) for message in find_messages(value)]


def _is_sharegpt(rows: Rows, parts: Parts, extra: tuple[str, ...]) -> bool:
    return any(is_sharegpt(message, extra) for message in _messages(rows, parts))


def _renamed(rows: Rows, parts: Parts, roles: Roles) -> tuple[str, ...]:
    """Names of roles that are read as others, in the order in which they come."""
    if not roles.sharegpt:
        return ()
    names = [message.get(roles.keys(message)[0]) for message in _messages(rows, parts)]
    kept = (*ROLES, *roles.extra)
    known = [name for name in names if isinstance(name, str) and name.strip().lower() in ALIASES and name not in kept]
    return tuple(dict.fromkeys(known))


def _paired_scores(parts: Parts, wanted: Parts) -> Parts:
    """The parts without a score that has no other score beside it."""
    lone = [part for part in SCORES if part in parts] if not parts.keys() >= set(SCORES) else []
    if lone and lone[0] in wanted:
        raise ValueError(f"`data.columns` maps {lone[0]} alone: map both {' and '.join(SCORES)}, or neither")
    return {part: column for part, column in parts.items() if part not in lone}


def _check_prompt(rows: Rows, parts: Parts, columns: list[str], where: str) -> None:
    """Refuse pairs at once whose answers stand alone while no column holds the prompt."""
    answers = _values(rows, parts["chosen"])
    alone = [value for value in answers if _is_answer_alone(value)]
    likely = next((name for name in PROMPT_LIKE if name in columns), "question")
    if "prompt" not in parts and alone and len(alone) == len(answers):
        raise ValueError(
            f"{where} has the columns {listed(columns)}: `{parts['chosen']}` holds answers without their prompt, and"
            f" there is no `prompt`. Say which column it is, such as `data.columns: {{prompt: {likely}}}`"
        )


def _is_answer_alone(value: Any) -> bool:
    if isinstance(value, str) and not WRITTEN_MESSAGES.match(value):
        return not is_dialogue(value)
    return len(find_messages(value)) == 1


def _how(format: Format) -> str:
    """The format's name, and what it does with its columns."""
    columns = {part: f"`{column}`" for part, column in format.columns.items()}
    match format.name:
        case "messages" | "sharegpt":
            name = "ShareGPT" if format.name == "sharegpt" else "Messages"
            keys = "from/value or role/content" if format.roles.sharegpt else "role/content"
            return f"{name}: {columns['messages']} ({keys})"
        case "prompt_completion":
            return f"Prompt and completion: {columns['prompt']} is context, {columns['completion']} is trained"
        case "alpaca":
            asked = " and ".join(columns[part] for part in ("instruction", "input") if part in columns)
            return f"Alpaca: {asked} ask, {columns['output']} answers"
        case "text":
            return f"Plain text: {columns['text']}, every token is trained and no chat template is used"
        case "dialogue" if format.kind == "chat":
            return f"Human/Assistant dialogues: {columns['text']}"
        case _:
            name = "Human/Assistant dialogues in pairs" if format.name == "dialogue" else "Preference pairs"
            prompt = f"prompt from {columns['prompt']}" if "prompt" in columns else "prompt from the turns they share"
            return f"{name}: {columns['chosen']} over {columns['rejected']}, {prompt}"
