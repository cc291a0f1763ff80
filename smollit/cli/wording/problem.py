"""Problem: what jsonargparse says about a wrong setting, taken apart: the setting, the class, what was expected."""

import re
import textwrap
from dataclasses import dataclass, replace
from typing import NamedTuple

KEY = re.compile(r'\s*Parser key "(?P<key>[\w.+]+)"(?: element \d+)?:\s*?\n?(?P<rest>.*)', re.S)
CLASS = re.compile(r"Problem with given class_path '(?P<owner>[\w.]+)':\n(?P<rest>.*)", re.S)
CALLABLE = re.compile(
    r"Type \S.*? expects a function or a callable class: (?P<rest>.*)"
    r"\. Got value: Namespace\(class_path='(?P<owner>[\w.]+)'.*",
    re.S,
)
NOT_CALLABLE = re.compile(
    r"Type (?P<types>\S.*?) expects a function or a callable class: .*?Got value: (?P<value>.*)", re.S
)
UNION = re.compile(
    r"Does not validate against any of the Union subtypes\nSubtypes: \[(?P<types>.*)\]\nErrors:\n(?P<errors>.*)"
    r"\nGiven value type: .*?\nGiven value: ?(?P<value>.*)",
    re.S,
)
NOT_A_FILE = re.compile(r"- Expected a path but .* either not accessible or invalid\n- (?P<rest>.*)", re.S)
NESTED = re.compile(r"NestedArg\(key='.*?', val=(?P<value>.*)\)$", re.S)
EXPECTED = re.compile(r"Expected an? (?P<types>.*?)(?:\. Got value: (?P<value>.*))?$", re.S)
NO_CLASS = re.compile(r"Expected a dot import path string: (?P<name>.*)")
NO_PATH = re.compile(r"Unexpected import path format: (?P<name>.*)")
NO_MODULE = re.compile(r"No module named '(?P<module>[\w.]+)'")
NOT_A = re.compile(
    r"(?:Import path (?P<name>[\w.]+) does not correspond to a subclass of (?P<base>\w+)"
    r"|Expected '(?P<other>[\w.]+)' to be a subclass of <class '(?P<its_base>\w+)'>).*"
)
NO_SETTINGS = re.compile(r"Unable to load config '(?P<value>.*?)'\n.*", re.S)
MISSING = re.compile(r"the following arguments are required: (?P<names>.*)")
NO_SUBCLASS = re.compile(
    r"Not a valid subclass of (?P<types>\w+)(?:\. Got value: (?P<value>.*?))?(?:\nSubclass.*)?$", re.S
)
NO_ATTRIBUTE = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")
UNKNOWN = re.compile(
    r"(?:Group '(?P<group>[\w.]+)' does not accept option|Option|unrecognized arguments:) '?-*(?P<name>[\w.+]+)"
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One wrong setting.

    Args:
        keys: The setting, from the outermost key on.
        owner: Class whose argument the last key is; empty for a section of the config.
        text: What jsonargparse says, if it is none of the following.
        missing: Keys that must be given.
        unknown: A key that there is not.
        no_class: A name that is not the import path of a class.
        module: The module that has no such class.
        types: The types that were expected, as Python writes them.
        value: What came.
    """

    keys: tuple[str, ...] = ()
    owner: str = ""
    text: str = ""
    missing: str = ""
    unknown: str = ""
    no_class: str = ""
    module: str = ""
    types: str = ""
    value: str = ""

    @property
    def depth(self) -> int:
        """How much is known about the place: of several complaints of a union, the one that got farthest is shown."""
        return 2 * len(self.keys) + bool(self.owner) + bool(self.unknown or self.module)

    def inside(self, key: str) -> "Problem":
        """The same problem, in a setting of a larger one."""
        return replace(self, keys=(key, *self.keys))


class _Union(NamedTuple):
    types: str
    errors: list[str]
    value: str


def take_apart(message: str) -> Problem:
    """The problem that a message of jsonargparse is about.

    The messages are nested by indentation: `Parser key`, `Problem with given class_path`, and for a union the
    complaint of each of its types.
    """
    message = textwrap.dedent(message).strip()
    if found := KEY.match(message):
        return take_apart(found["rest"]).inside(found["key"])
    if found := CLASS.match(message) or CALLABLE.match(message):
        inner = take_apart(found["rest"])
        return inner if inner.owner else replace(inner, owner=found["owner"])
    if found := NOT_A_FILE.match(message):
        return take_apart(found["rest"])
    if found := UNION.match(message):
        errors = re.split(r"^  - ", found["errors"], flags=re.M)[1:]
        return _of_union(_Union(found["types"], errors, _value(found["value"])))
    return _leaf(message)


def _of_union(union: _Union) -> Problem:
    """The complaint that got farthest; if none did, all types together."""
    inner = [take_apart(re.sub(r"^  ", "", error, flags=re.M)) for error in union.errors]
    best = max(inner, key=lambda problem: problem.depth)
    named = next((problem for problem in inner if problem.no_class), None)
    if best.depth:
        return best
    is_name = named is not None and not re.search(r"<class 'str'>", union.types)
    return named if is_name and named else Problem(types=union.types, value=union.value)


def _leaf(message: str) -> Problem:
    if found := UNKNOWN.match(message):
        return Problem(unknown=".".join(part for part in (found["group"], found["name"]) if part))
    if found := NO_CLASS.match(message):
        return Problem(no_class=found["name"])
    if found := NO_ATTRIBUTE.match(message):
        return Problem(no_class=found["name"], module=found["module"])
    if found := NO_SETTINGS.match(message):
        return Problem(text=f"expected settings, got {found['value']}")
    if found := NO_PATH.match(message):
        return Problem(text=f"expected a class, got {found['name']!r}: settings in a file are given by --config")
    if found := NO_MODULE.match(message):
        return Problem(text=f"there is no module {found['module']}")
    if found := NOT_A.match(message):
        return Problem(
            text=f"{found['name'] or found['other']} is not a subclass of {found['base'] or found['its_base']}"
        )
    if found := MISSING.match(message):
        return Problem(missing=found["names"], text=message)
    if found := NOT_CALLABLE.match(message) or NO_SUBCLASS.match(message) or EXPECTED.match(message):
        return Problem(types=found["types"], value=_value(found["value"] or ""))
    return Problem(text=" ".join(message.split()))


def _value(text: str) -> str:
    """What the user wrote: jsonargparse wraps a value of `--a.b value` whose `a` is a list or a class."""
    nested = NESTED.match(text)
    return nested["value"].strip("'") if nested else text
