"""What a row gives the chat template besides its messages: its tools and switches, as transformers passes them."""

from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.format import Fields
from smollit.data.formats.messages import decode
from smollit.data.formats.types import Variables, shown

RESERVED = ("messages", "tools", "add_generation_prompt")  # variables of a template that are no switches


def parse_variables(fields: Fields) -> Variables:
    """The row's `chat_template_kwargs`, and its `tools`; empty without them.

    Raises:
        BadRow: If tools are not a list of objects, or the switches not an object.
    """
    tools, switches = (_decoded(fields, part) for part in ("tools", "chat_template_kwargs"))
    if tools is None and switches is None:
        return {}
    return {**_parse_switches(switches, fields), **({"tools": _parse_tools(tools, fields)} if tools else {})}


def _parse_tools(tools: Any, fields: Fields) -> list[dict[str, Any]]:
    name = fields.name("tools")
    if not isinstance(tools, list):
        raise BadRow(
            DropReason.MALFORMED_TOOLS,
            f'`{name}` must be a list of tools, or its JSON text, got {shown(tools)} (`data.columns: {{tools: ""}}`'
            " leaves the column alone)",
        )
    tools = [decode(tool, f"{name}[{index}]") if isinstance(tool, str) else tool for index, tool in enumerate(tools)]
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise BadRow(DropReason.MALFORMED_TOOLS, f"{name}[{index}] must be an object, got {shown(tool)}")
    return tools


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
