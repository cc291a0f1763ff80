"""Null where a class expects a value: jsonargparse accepts it, and the class would fail much later."""

from pydoc import locate
from types import NoneType
from typing import Any, get_args, get_type_hints


def check_nulls(class_path: str, settings: dict[str, Any], where: str) -> None:
    """Refuse a null where the class expects a value.

    Args:
        class_path: Import path of the class.
        settings: Its arguments.
        where: `model`, `data` or `model.loss`: the section of the config, for the error.

    Raises:
        ValueError: Names the setting and what it must be.
    """
    found = locate(class_path)
    classes = found.__mro__ if isinstance(found, type) else ()
    for name in (name for name, value in settings.items() if value is None):
        hints = (get_type_hints(vars(known).get("__init__", object)).get(name) for known in classes)
        hint = next((hint for hint in hints if hint is not None), None)
        if hint is not None and NoneType not in get_args(hint):
            expected = hint.__name__ if isinstance(hint, type) else hint
            raise ValueError(f"`{where}.{name}` can't be null: expected {expected}")
