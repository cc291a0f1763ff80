"""JSON Lines stay text, one column of lines, until each is decoded by itself. (A leaf.)

Arrow has one type per column, and fails on contents that are text in one row and a list of parts in the next.
"""

import json
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason

RAW = "raw_json_line"  # the one column of a JSON or JSON Lines file


def decode_line(line: str) -> dict[str, Any]:
    """A JSON object from a line of a JSON Lines file.

    Raises:
        BadRow: If the line is not JSON, or no object.
    """
    try:
        row = json.loads(line.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python reads
        raise BadRow(DropReason.MALFORMED_JSON, str(error)) from error
    if not isinstance(row, dict):
        raise BadRow(DropReason.MALFORMED_JSON, f"expected an object, got {type(row).__name__}")
    return row
