"""Shared: a function of the config that the copies of a module share."""

from collections.abc import Callable
from typing import Any, Self


class Shared:
    """A function that makes an optimizer or a scheduler.

    The command line's functions hold the whole command line, with the trainer and its processes. Averages of the
    weights copy a module with all that it holds.

    Args:
        make: The function.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What the function makes."""
        return self.make(*inputs, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
