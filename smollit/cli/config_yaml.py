"""Reading and writing of YAML, in files and in values on the command line."""

import math
import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml
from jsonargparse import set_dumper, set_loader

BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
INT = re.compile(r"^[-+]?[0-9][0-9_]*$|^0x[0-9a-fA-F]+$")
FLOAT = re.compile(
    r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
NULL = re.compile(r"^(?:~|null|Null|NULL|None|)$")
MERGE = re.compile(r"^<<$")
OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


class RepeatedKeyError(yaml.constructor.ConstructorError):
    """A key that stands twice in one mapping: the first value would be lost."""


class ConfigLoader(yaml.SafeLoader):
    """YAML 1.2: `on`, `no` and 1:30 are texts, 012 is 12; with floats as Python writes them, and None as null.

    A plain None is null; a quoted "None" stays text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """An integer in decimal or hexadecimal digits: a leading 0 does not make it octal."""
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 16 if text.startswith("0x") else 10)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping.

        Raises:
            RepeatedKeyError: If a key stands in it twice.
        """
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                first = lines[key.value]
                raise RepeatedKeyError(
                    None, None, f"`{key.value}` is given twice, in lines {first} and {key.start_mark.line + 1}", None
                )
            lines[str(key.value)] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class ConfigDumper(yaml.SafeDumper):
    """YAML whose texts are in quotes where ConfigLoader, or another reader, would take them for something else."""

    yaml_implicit_resolvers = {first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}


# Texts of classes of their own, as the members of a StrEnum, which are defaults of Lightning's Timer.
ConfigDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))
ConfigLoader.add_constructor("tag:yaml.org,2002:int", ConfigLoader.construct_yaml_int)
for tag, pattern, first in (
    ("bool", BOOL, "tTfF"),
    ("int", INT, "-+0123456789"),
    ("float", FLOAT, "-+0123456789."),
    ("null", NULL, ["~", "n", "N", ""]),
    ("merge", MERGE, "<"),
):
    for reader_or_writer in (ConfigLoader, ConfigDumper):
        reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list(first))


def load(text: str) -> Any:
    """The value of a YAML text; a single line such as `C:` or `{a, b}` stays text."""
    value = yaml.load(text, Loader=ConfigLoader)
    is_one_line = "\n" not in text.strip()
    if is_one_line and isinstance(value, dict) and value and all(inner is None for inner in value.values()):
        return value if ": " in text else text
    if isinstance(value, dict) and value.get("trainer", ...) is None:
        del value["trainer"]  # a section without a setting, as where all are comments
    return with_arguments(value)


def with_arguments(value: Any) -> Any:
    """The value with the settings that stand beside a `class_path` below its `init_args`; without empty `init_args`.

    Raises:
        RepeatedKeyError: If a setting stands in both places.
    """
    if isinstance(value, list):
        return [with_arguments(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: with_arguments(inner) for key, inner in value.items() if inner is not None or key != "init_args"}
    beside = {key: inner for key, inner in kept.items() if key not in OF_A_CLASS}
    below = kept.get("init_args", {})
    if "class_path" not in kept or not beside or not isinstance(below, dict):
        return kept
    if twice := sorted(map(str, beside.keys() & below.keys())):
        raise RepeatedKeyError(None, None, f"`{twice[0]}` is given twice, beside `class_path` and in `init_args`", None)
    return {key: inner for key, inner in kept.items() if key in OF_A_CLASS} | {"init_args": below | beside}


def dump(value: Any, *, in_one_line: bool = False) -> str:
    """A value as YAML that `load` reads as the same."""
    width = math.inf if in_one_line else None
    options = {"default_flow_style": in_one_line, "width": width, "allow_unicode": True, "sort_keys": False}
    text: str = yaml.dump(value, Dumper=ConfigDumper, **options)
    return text.rstrip("\n") if in_one_line else text


def use(complete: Callable[[Any], Any]) -> None:
    """Make jsonargparse read and write YAML this way.

    Args:
        complete: What is done to each value that is read.
    """
    set_loader("yaml", lambda text: complete(load(text)), (yaml.YAMLError,))
    set_dumper("yaml", dump)
