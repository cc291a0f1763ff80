"""Checks of the data modules' settings."""


def check_at_least(least: int, **values: int | None) -> None:
    """Refuse settings below `least`; null passes.

    Raises:
        ValueError: If one is below.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"`data.{name}` must be at least {least}, got {value}")
