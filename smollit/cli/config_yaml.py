"""Reading of YAML, in files and in values on the command line."""

import re
from typing import Any

import yaml
from jsonargparse import set_loader

FLOAT = re.compile(
    r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
NULL = re.compile("^None$")
UNREAD = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")  # a date stays text; floats are read by FLOAT


class ConfigLoader(yaml.SafeLoader):
    """YAML with floats as Python writes them (1e-5), and with a plain None as null; a quoted "None" stays text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in UNREAD]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


ConfigLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
ConfigLoader.add_implicit_resolver("tag:yaml.org,2002:null", NULL, ["N"])


def load(text: str) -> Any:
    """The value of a YAML text; a single line such as `C:` or `{a, b}` stays text."""
    value = yaml.load(text, Loader=ConfigLoader)
    is_one_line = "\n" not in text.strip()
    if is_one_line and isinstance(value, dict) and value and all(inner is None for inner in value.values()):
        return value if ": " in text else text
    return value


def use() -> None:
    """Make jsonargparse read YAML this way."""
    set_loader("yaml", load, (yaml.YAMLError,))
