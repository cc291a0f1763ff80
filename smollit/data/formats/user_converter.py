"""Converter: a function of the user's that turns each row into one of a known format."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pydoc import locate

from smollit.data.sources.files import Row


@dataclass(frozen=True)
class Converter:
    """The function that `data.convert` names, called with each row before its format is read.

    It is found by its name in every process that tokenizes, and its source is part of the cache key.

    Args:
        name: Where the function is: `my_module.from_threads`.
    """

    name: str

    @cached_property
    def function(self) -> Callable[[Row], Row]:
        """The function.

        Raises:
            ValueError: If there is no such function.
        """
        found = locate(self.name)
        if not callable(found):
            raise ValueError(
                f"`data.convert` must name a function, as my_module.my_function with my_module.py in the folder that"
                f" the command is started from; {self.name!r} is none"
            )
        return found

    def __call__(self, row: Row) -> Row:
        """The row in a known format.

        Raises:
            ValueError: If the function fails on the row, or returns something else than a dict.
        """
        function = self.function
        try:
            converted = function(row)
        except Exception as error:
            raise ValueError(
                f"`data.convert: {self.name}` fails with {type(error).__name__} ({error}) on the row {row!r:.200}"
            ) from error
        if not isinstance(converted, dict):
            raise ValueError(
                f"`data.convert: {self.name}` must return a dict of columns, got {type(converted).__name__} for the row"
                f" {row!r:.200}"
            )
        return converted

    @cached_property
    def key(self) -> str:
        """Hash of the function's module: another source gives other examples."""
        module = inspect.getmodule(self.function)
        source = inspect.getsource(module if module is not None else self.function)
        return hashlib.sha256(source.encode()).hexdigest()[:32]
