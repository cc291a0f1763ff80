"""The runs of a sweep: from words with several values to the settings and the name of each run."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
UNSAFE = re.compile(r"[^\w.+-]+")


class Variant(NamedTuple):
    """One run of a sweep.

    Args:
        name: Name of its folder: the last part of each setting, and its value.
        values: Its value of each setting that is swept.
    """

    name: str
    values: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The values as words of a command line."""
        return [word for setting, value in self.values.items() for word in (f"--{setting}", value)]


def split_values(text: str) -> list[str]:
    """The values between commas. Brackets and quotes keep a value together: `[0.9, 0.95]` is one; quotes are removed.

    A text of several words is one value, whatever commas it has.
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        else:
            depth += (character in OPENING) - (character in CLOSING)
        parts[-1] += character
    values = [part.strip() for part in parts]
    if any(len(value.split()) > 1 and value[0] not in OPENING + QUOTES for value in values):
        return [text]
    return [value[1:-1] if QUOTED.fullmatch(value) else value for value in values]


def take_swept(words: Sequence[str], own: frozenset[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words with the first value of each setting, and all values of the settings that have several.

    Args:
        words: The words after the command.
        own: Settings that are not swept: those of the command itself.

    Raises:
        ValueError: If a value between two commas is missing, or given twice.
    """
    kept, swept = [], dict[str, list[str]]()
    rest = list(words)
    while rest:
        name, is_joined, value = rest.pop(0).partition("=")
        kept.append(name + is_joined + value)
        if not name.startswith("--") or name[2:] in own or not (is_joined or rest):
            continue
        text = value if is_joined else rest[0]
        values = split_values(text) if "," in text else [text]
        if len(values) > 1:
            if not all(values) or len(set(values)) < len(values):
                raise ValueError(f"`{name}` has a value that is empty or given twice: {', '.join(values)}")
            swept[name[2:]] = values
        if is_joined:
            kept[-1] = f"{name}={values[0]}"
        else:
            rest[0] = values[0]
    return kept, swept


def variants(swept: Mapping[str, Sequence[str]]) -> Iterator[Variant]:
    """Every combination of the values, the last setting changing fastest."""
    for values in itertools.product(*swept.values()):
        named = dict(zip(swept, values, strict=True))
        parts = [f"{setting.rpartition('.')[2]}-{value}" for setting, value in named.items()]
        yield Variant(UNSAFE.sub("_", "_".join(parts)), named)
