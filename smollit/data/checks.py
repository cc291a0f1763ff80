"""Checks of the data modules' settings."""

import logging

log = logging.getLogger("smollit.data")
SHUFFLE_BUFFER = 10_000  # the default


def check_at_least(least: int, **values: int | None) -> None:
    """Refuse settings below `least`; null passes.

    Raises:
        ValueError: If one is below.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"`data.{name}` must be at least {least}, got {value}")


def check_packing(packing: str, streaming: bool, *, pack_length: int | None, group_by_length: bool) -> None:
    """Refuse what needs lengths in advance in a stream, and a length without packing.

    Raises:
        ValueError: Names both settings.
    """
    if streaming and packing == "on":
        raise ValueError("`data.packing: on` needs all lengths in advance, which `data.streaming` does not have")
    if streaming and group_by_length:
        raise ValueError("`data.group_by_length` has no effect with `data.streaming`: lengths are not known in advance")
    if packing == "off" and pack_length is not None:
        raise ValueError("`data.pack_length` has no effect with `data.packing: off`: set `data.packing` to on or auto")


def check_stream(streaming: bool, *, max_batch_tokens: int | None, shuffle_buffer: int) -> None:
    """Refuse a buffer without a stream; warn of a bound that training batches of a stream do not have.

    Raises:
        ValueError: Names both settings.
    """
    if not streaming and shuffle_buffer != SHUFFLE_BUFFER:
        raise ValueError("`data.shuffle_buffer` has no effect without `data.streaming`: all rows are shuffled")
    if streaming and max_batch_tokens is not None:
        log.warning(
            "`data.max_batch_tokens` bounds the validation batches only: with `data.streaming`, training batches have"
            " `data.train_batch_size` rows whatever their length"
        )
