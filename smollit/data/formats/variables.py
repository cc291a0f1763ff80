"""What a row gives the chat template besides its messages: its tools and switches, as transformers passes them."""

from collections.abc import Collection, Iterator
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.format import Fields
from smollit.data.formats.messages.contents import parse_objects
from smollit.data.formats.messages.shapes import decode
from smollit.data.formats.types import Message, Variables, shown

RESERVED = ("messages", "tools", "add_generation_prompt")  # variables of a template that are no switches
VALUES = ("default", "const", "enum", "examples")  # keys of a JSON schema whose value may be null


def parse_variables(fields: Fields) -> Variables:
    """The row's `chat_template_kwargs`, and its `tools`; empty without them.

    Raises:
        BadRow: If tools are not a list of objects, or the switches not an object.
    """
    given, switches = fields.get("tools"), _decoded(fields, "chat_template_kwargs")
    if given is None and switches is None:
        return {}
    tools = _parse_tools(given, fields) if given is not None else []
    return {**_parse_switches(switches, fields), **({"tools": tools} if tools else {})}


def _parse_tools(tools: Any, fields: Fields) -> list[dict[str, Any]]:
    """The tools, as transformers takes them: OpenAI's `functions` had no `type` yet.

    Files that `datasets` wrote give each tool the parameters of all others, as nulls: these are left out.
    """
    name = fields.name("tools")
    try:
        found = parse_objects(tools, name, "tools")
    except BadRow as bad:
        raise BadRow(bad.reason, f'{bad.detail} (`data.columns: {{tools: ""}}` leaves the column alone)') from bad
    found = [_without_nulls(tool) for tool in found]
    return [{"type": "function", "function": tool} for tool in found] if name == "functions" else found


def _without_nulls(schema: Any) -> Any:
    """A JSON schema without keys that are null, except those of `VALUES`."""
    if isinstance(schema, list):
        return [_without_nulls(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: item if key in VALUES else _without_nulls(item)
        for key, item in schema.items()
        if item is not None or key in VALUES
    }


def without_foreign_nulls(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """The messages, whose calls have no nulls for parameters of other tools: files that `datasets` wrote have them."""
    own = {name: keys for tool in tools for name, keys in _parameters(tool)}
    return [
        message | {"tool_calls": [_without_foreign(call, own) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _parameters(tool: dict[str, Any]) -> Iterator[tuple[str, Collection[str]]]:
    """The name of a tool, and the names of its parameters, if it says them."""
    match tool.get("function", tool):
        case {"name": str(name), "parameters": {"properties": dict(parameters)}}:
            yield name, parameters.keys()


def _without_foreign(call: dict[str, Any], own: dict[str, Collection[str]]) -> dict[str, Any]:
    match call:
        case {"function": dict(function)}:
            return call | {"function": _without_foreign(function, own)}
        case {"name": str(name), "arguments": dict(arguments)} if name in own:
            kept = {key: value for key, value in arguments.items() if value is not None or key in own[name]}
            return call | {"arguments": kept}
    return call


def _parse_switches(switches: Any, fields: Fields) -> Variables:
    name = fields.name("chat_template_kwargs")
    if not isinstance(switches or {}, dict):
        raise BadRow(DropReason.MALFORMED_TOOLS, f"`{name}` must be an object, got {shown(switches)}")
    reserved = next((key for key in switches or {} if key in RESERVED), None)
    if reserved:
        raise BadRow(DropReason.MALFORMED_TOOLS, f"`{name}` has the key {reserved!r}, which is no switch of a template")
    return switches or {}


def _decoded(fields: Fields, part: str) -> Any:
    """The value of a part, decoded if it is JSON text; None if it is null or an empty cell."""
    value = fields.get(part)
    if not isinstance(value, str):
        return value
    return decode(value, f"`{fields.name(part)}`", DropReason.MALFORMED_TOOLS) if value.strip() else None
