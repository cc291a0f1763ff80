"""Converter: a function of the user's that turns each row into one of a known format."""

import ast
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import resolve_name
from pydoc import ErrorDuringImport, locate
from traceback import extract_tb
from types import ModuleType

from smollit.data.sources.files import Row


@dataclass(frozen=True)
class Converter:
    """The function that `data.convert` names, called with each row before its format is read. It returns a row, or a
    list of rows: an empty one leaves the row out.

    It is found by its name in every process that tokenizes, and its source is part of the cache key.

    Args:
        name: Where the function is: `my_module.from_threads`.
    """

    name: str

    @cached_property
    def function(self) -> Callable[[Row], Row | list[Row]]:
        """The function.

        Raises:
            ValueError: If there is no such function, or its module can't be imported.
        """
        try:
            found = locate(self.name)
        except ErrorDuringImport as error:
            frames = [frame for frame in extract_tb(error.tb) if not frame.filename.startswith("<")]
            line = f", line {frames[-1].lineno}" if frames and not isinstance(error.value, SyntaxError) else ""
            raise ValueError(
                f"`data.convert: {self.name}`: its module can't be imported: {type(error.value).__name__}:"
                f" {error.value} ({error.filename}{line})"
            ) from error
        if not callable(found):
            raise ValueError(
                f"`data.convert` must name a function, as my_module.my_function with my_module.py in the folder that"
                f" the command is started from; {self.name!r} is none"
            )
        return found

    def __call__(self, row: Row) -> list[Row]:
        """The rows in a known format that a row becomes.

        Raises:
            ValueError: If the function fails on the row, or returns something else than a dict or a list of dicts.
        """
        function = self.function
        try:
            converted = function(row)
        except Exception as error:
            raise ValueError(
                f"`data.convert: {self.name}` fails with {type(error).__name__} ({error}) on the row {row!r:.200}"
            ) from error
        rows = converted if isinstance(converted, list) else [converted]
        wrong = next((item for item in rows if not isinstance(item, dict)), None)
        if wrong is not None or None in rows:
            got = f"list of {type(wrong).__name__}" if isinstance(converted, list) else type(converted).__name__
            raise ValueError(
                f"`data.convert: {self.name}` must return a dict of columns, or a list of such dicts, got {got} for the"
                f" row {row!r:.200}"
            )
        return rows

    @cached_property
    def key(self) -> str:
        """Hash of the name and of the sources that the function may use: others give other examples."""
        module = inspect.getmodule(self.function)
        sources = [inspect.getsource(self.function)] if module is None else _sources_beside(module)
        return hashlib.sha256("\n".join([self.name, *sources]).encode()).hexdigest()[:32]


def _sources_beside(module: ModuleType) -> list[str]:
    """The source of a module, and of those in its folder that it imports, at any depth."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if one.__name__ in found:
            continue
        found[one.__name__] = inspect.getsource(one)
        imported = (sys.modules.get(name) for name in _imports(one, found[one.__name__]))
        waiting += [other for other in imported if other is not None and _folder(other) == _folder(module)]
    return [found[name] for name in sorted(found)]


def _imports(module: ModuleType, source: str) -> Iterator[str]:
    """The names of modules that a source imports; some may be those of other things."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=name, names=names, level=level):
                base = resolve_name("." * level + (name or ""), module.__package__) if level else name or ""
                yield from (base, *(f"{base}.{alias.name}" for alias in names))


def _folder(module: ModuleType) -> str:
    return os.path.dirname(module.__file__ or "") if "__file__" in vars(module) else ""
