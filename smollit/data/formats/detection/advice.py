"""Why no format fits a split, and which mapping of its columns would read it."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from smollit.data.formats.detection.split import Split
from smollit.data.formats.format import LAYOUTS, USUAL, listed, parts_of
from smollit.data.formats.types import Kind
from smollit.data.sources.mixture import FormatName

NEEDED = {
    "chat": "`messages` (or `conversations`), `prompt` and `completion`, `instruction` and `output`, or `text`",
    "preference": "`chosen` and `rejected`",
}
PLURAL = {"chat": "chats", "preference": "preference pairs"}
MODULES = {"chat": "UltraChatDataModule", "preference": "UltraFeedbackDataModule"}
MAPPED: dict[Kind, tuple[str, ...]] = {"chat": ("prompt", "completion"), "preference": ("prompt", "chosen", "rejected")}
# Words in the names of columns by which a part is likely, the surest first; parts are looked for in this order.
LIKELY = {
    "rejected": ("reject", "dispref|unpref|worse|worst|lose|losing|bad|negative"),
    "chosen": ("chosen", "accept|prefer|better|best|win|good|positive"),
    "completion": ("complet|respon|answer|output|assistant", "target|reply|solution|summary|gpt|bot|label"),
    "prompt": (
        "prompt|question|query|instruct|input|user|human|problem",
        "post|article|document|source|context|text",
    ),
}
RATING = re.compile(r"score|rating|reward|quality|rank|helpful|preference|overall", re.IGNORECASE)


def why_not(split: Split, format: FormatName) -> str:
    """Why no format fits, or not the one that the user wants."""
    kind, mapping = split.kind, split.mapping
    if format != "auto" and format not in LAYOUTS[kind]:
        names = ", ".join(LAYOUTS[kind])
        return f"`data.format` is {format}, but {PLURAL[kind]} have the formats {names}{_other_kind(split)}"
    asked = [format] if format != "auto" else list(LAYOUTS[kind])
    if not any(split.asked <= set(parts_of(kind, name)) for name in asked):
        return f"`data.columns` maps {listed(list(mapping))}, and none of the formats {listed(asked)} has all of these"
    needed = f"{PLURAL[kind]} need {NEEDED[kind]}"
    if format != "auto":
        parts = " and ".join(f"`{part}`" for part in LAYOUTS[kind][format].needs)
        needed = f"`data.format: {format}` needs {parts}"
    mapped = f" with `data.columns` {mapping}" if mapping else ""
    hint = (
        _other_kind(split) or one_message_a_row(split) or f". Map parts to columns with `data.columns`{_mapping(split)}"
    )
    if kind == "preference":
        hint += _rated_rows(split) + _rated_responses(split)
    return f"{split.where} has the columns {listed(split.columns)}, but {needed}{mapped}{hint}"


def one_message_a_row(split: Split) -> str:
    """What to do if each row is one message of a thread, which the rows do not name; else empty."""
    role = next(filter(split.holds_roles, filter(split.columns.__contains__, USUAL["role"])), "")
    if not role:
        return ""
    text = "" if "text" in split.parts("chat") else f"text: {next(iter(_text_paths(split, without=[role])), 'text')}, "
    return (
        f": with a `{role}`, each row is one message of a thread. Name its column, as in"
        f" `data.columns: {{{text}thread: conversation_id}}`, or of its own id and of the message that it follows, as"
        f" in `data.columns: {{{text}id: message_id, parent: parent_id}}`"
    )


def likely_prompt(split: Split) -> str:
    """The column of texts that most likely holds the prompt of responses that come alone; empty without another one."""
    used = set(split.parts(split.kind).values())
    paths = [path for path in _text_paths(split) if path not in used]
    return _likely("prompt", paths) or next(iter(paths), "")


def _mapping(split: Split) -> str:
    """A mapping of the columns that hold texts, by their names, else by their order; of pairs only by names."""
    wanted, known = MAPPED[split.kind], split.parts(split.kind)
    found = {part: known[part] for part in wanted if part in known}
    for part in (part for part in LIKELY if part in wanted and part not in found):
        left = [path for path in _text_paths(split) if path not in found.values()]
        match = _likely(part, left)
        found |= {part: match} if match else {}
    is_pair = split.kind == "preference"
    if is_pair and not {"chosen", "rejected"} <= found.keys():
        found = {part: path for part, path in found.items() if part == "prompt"}
    left = [path for path in _text_paths(split) if path not in found.values()]
    if not is_pair:
        found |= dict(zip([part for part in wanted if part not in found], left, strict=False))
    elif "chosen" not in found and len(left) > 1:
        return (
            f". If a column says which of `{left[0]}` and `{left[1]}` is better:"
            f" {{responses: \"{left[0]}, {left[1]}\", chosen_if: \"highest winner == 'a', winner == 'b'\"}}"
        )
    if len(found) < len(wanted):
        return ""
    return f", as in {{{', '.join(f'{part}: {found[part]}' for part in wanted)}}}"


def _likely(part: str, paths: list[str]) -> str:
    """The path whose name says most surely that it holds a part; empty if none does."""
    hits = (path for words in LIKELY[part] for path in paths if re.search(words, path, re.IGNORECASE))
    return next(hits, "")


def _text_paths(split: Split, without: Sequence[str] = ()) -> list[str]:
    """The columns with texts, and the keys inside columns, in their order; those with texts of one word come last."""
    columns = [column for column in split.columns if column not in without]
    paths = [path for column in columns for path in _inside(column, next(iter(split.values(column)), None))]
    texts = {path: [value for value in split.values(path) if isinstance(value, str)] for path in paths}
    return sorted(
        filter(texts.__getitem__, paths), key=lambda path: not any(len(text.split()) > 1 for text in texts[path])
    )


def _inside(path: str, value: Any, depth: int = 2) -> Iterator[str]:
    """The paths to texts in a value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, list) and value and depth:
        yield from _inside(f"{path}.0", value[0], depth - 1)
    elif isinstance(value, dict) and depth:
        for key, item in value.items():
            yield from _inside(f"{path}.{key}", item, depth - 1)


def _rated_rows(split: Split) -> str:
    """How rows with one rated response each are read, if these may be such rows."""
    if not split.parts("preference").keys() >= {"prompt", "completion"}:
        return ""
    rating = _rating([name for name in split.columns if _is_numeric(split.values(name))], "score")
    return (
        ". If rows with the same prompt hold rated responses, name the rating, as in"
        f" `data.columns: {{chosen_if: highest {rating}}}`"
    )


def _rated_responses(split: Split) -> str:
    """How a column of several responses is read, if there is one."""
    column = split.list_of_responses()
    if not column:
        return ""
    first = split.values(column)[0]
    if isinstance(first[0], dict):
        texts = [key for key, value in first[0].items() if isinstance(value, str)]
        text = max(texts, key=lambda key: len(first[0][key]), default="text")
        numbers = [key for key, value in first[0].items() if _is_numeric([value])]
        responses, rating = f"{column}.{text}", f"{column}.{_rating(numbers, 'score')}"
    else:
        lists = [name for name in split.columns if _is_numeric_list(split.values(name))]
        responses, rating = column, _rating(lists, "scores")
    return (
        f". If `{column}` holds several responses, `responses` maps them and `chosen_if` says which is better:"
        f" `data.columns: {{responses: {responses}, chosen_if: highest {rating}}}`"
    )


def _rating(names: list[str], otherwise: str) -> str:
    """The name of a rating, else the first one."""
    return next(filter(RATING.search, names), names[0] if names else otherwise)


def _is_numeric(values: list[Any]) -> bool:
    """Whether values are numbers, or texts of numbers as in CSV files."""
    return bool(values) and all(re.fullmatch(r"-?\d+(\.\d+)?", str(value)) for value in values)


def _is_numeric_list(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, list) and _is_numeric(value) for value in values)


def _other_kind(split: Split) -> str:
    other: Kind = "preference" if split.kind == "chat" else "chat"
    return f". These are {PLURAL[other]}: use {MODULES[other]}" if split.fitting(other) else ""
