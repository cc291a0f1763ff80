"""Values of a row by the path of their column, as `meta.lang` or `answers.0.text`; columns of media as stored."""

import ast
import json
import logging
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Audio, Dataset, Features, Image, LargeList, List, Pdf, Video

from smollit.data.sources.files import Row

log = logging.getLogger(__name__)
JOIN, LIST = " + ", ", "  # between the columns of one text, and between those of a list


def value_at(row: Row, path: str) -> Any:
    """The value of a column, or of a key inside it; null where there is none.

    `a.b` is the key b of the column a. Of a list it is the list of all b, and `a.0` its first item. A column whose own
    name is `a.b` comes first.
    """
    if path in row:
        return row[path]
    for split in range(path.count("."), 0, -1):
        names = path.split(".")
        head = ".".join(names[:split])
        if head in row:
            return _inside(row[head], names[split:])
    return None


def decoded_cell(value: Any) -> Any:
    """The list or object that a text is, in JSON or as Python prints it, as CSV cells have it; else the value."""
    if not (isinstance(value, str) and value.lstrip()[:1] in ("[", "{")):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def _inside(value: Any, names: list[str]) -> Any:
    for index, name in enumerate(names):
        value = decoded_cell(value)
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
        elif isinstance(value, list):
            return [_inside(item, names[index:]) for item in value]
        else:
            return None
    return value


def heads(path: str) -> list[str]:
    """The paths in `a + b` or `a, b`."""
    return [name.strip() for part in path.split(JOIN) for name in part.split(LIST.strip()) if name.strip()]


def has_column(columns: list[str], path: str) -> bool:
    """Whether a path begins with one of the columns."""
    names = path.split(".")
    return any(".".join(names[:split]) in columns for split in range(1, len(names) + 1))


def features_without_maps(schema: pa.Schema, folder: Path) -> Features | None:
    """The columns of a folder's files without those that hold maps, which `datasets` can't read; None if none does."""
    maps = [field.name for field in schema if "map<" in str(field.type)]
    if not maps:
        return None
    _warn_once(folder, ", ".join(maps))
    return Features.from_arrow_schema(pa.schema([field for field in schema if field.name not in maps]))


@lru_cache
def _warn_once(folder: Path, names: str) -> None:
    log.warning("%s has files with columns that hold maps, which can't be read and are left out: %s", folder, names)


def undecoded(rows: Dataset) -> Dataset:
    """The rows with images, sounds, videos and PDFs as they are stored: decoding them needs packages, for no text."""
    for name, feature in rows.features.items():
        stored = _undecoded(feature)
        if stored != feature:
            rows = rows.cast_column(name, stored)
    return rows


def _undecoded(feature: Any) -> Any:
    match feature:
        case dict():
            return {name: _undecoded(inner) for name, inner in feature.items()}
        case List() | LargeList():
            stored = copy(feature)
            stored.feature = _undecoded(feature.feature)
            return stored
        case Audio() | Image() | Video() | Pdf():
            stored = copy(feature)
            stored.decode = False
            return stored
    return feature
