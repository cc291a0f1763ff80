"""Python's types in words, values as a person writes them, and the nearest of several names."""

import difflib
import re
import textwrap
from ast import literal_eval
from collections.abc import Iterable
from contextlib import suppress

from smollit.cli import config_yaml

WORDS = {
    "int": ("an integer",),
    "float": ("a number",),
    "bool": ("true", "false"),
    "str": ("text",),
    "list": ("a list",),
    "tuple": ("a list",),
    "dict": ("a mapping",),
    "NoneType": ("null",),
    "timedelta": ("a duration such as 1:30:00",),
}
CHOICES = re.compile(r"typing\.Literal\[(.*?)\]")
NAME = re.compile(r"<class '([\w.]+)'>|[\w.]+")
LIST_OF = re.compile(r"\b(?:list|tuple|collections\.abc\.\w+)\[[^\]]*\]+")
WRAPPERS = re.compile(r"typing\.(?:Union|Optional)\[|(?:typing|collections\.abc)\.Callable\[\[[^\]]*\], ")
DICT_OF = re.compile(r"\bdict\[[^\]]*\]+")


def choices(types: str) -> list[str]:
    """The values that literal types name; a type of its own for `64` and 64 names it once."""
    found = [str(value) for values in CHOICES.findall(types) for value in literal_eval(f"[{values}]")]
    return list(dict.fromkeys(found))


def expected(types: str) -> str:
    """`one of linear, cosine`, `an integer, a number or null`."""
    named = choices(types)
    rest = DICT_OF.sub("dict", LIST_OF.sub("list", WRAPPERS.sub("", CHOICES.sub("", types))))
    names = [(match[1] or match[0]).rpartition(".")[2] for match in NAME.finditer(rest)]
    names.sort(key=lambda name: name == "float" and "int" in names)  # versions of Lightning write `float | int` too
    words = [word for name in names for word in WORDS.get(name, (f"the class_path of a {name}",))]
    words = list(dict.fromkeys([*named, *(word for word in words if word != "null")]))
    words += ["null"] * ("NoneType" in names)
    if named:
        return f"one of {', '.join(words)}"
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def shown(value: str) -> str:
    """A value in quotes if YAML reads it as a text; long ones are shortened."""
    with suppress(Exception):
        if not isinstance(config_yaml.load(value), str):
            return textwrap.shorten(value, 80, placeholder=" ...")
    return repr(textwrap.shorten(value, 80, placeholder=" ..."))


def is_number(value: str) -> bool:
    """Whether YAML reads a value as a number: a hash of a commit may look like one."""
    return bool(config_yaml.INT.match(value) or config_yaml.FLOAT.match(value))


def nearest(name: str, names: Iterable[str], cutoff: float = 0.7) -> str | None:
    """The most similar of some names, in any case; None if none is similar."""
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None
