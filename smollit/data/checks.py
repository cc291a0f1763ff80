"""Checks of the data modules' settings."""

import logging
from collections.abc import Iterable
from difflib import get_close_matches

from smollit.data.formats.messages.roles import ROLES
from smollit.data.template.train_on import ALL, PARTS, TrainOn
from smollit.errors import UsageError

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


def check_train_on(train_on: TrainOn, extra_roles: Iterable[str]) -> None:
    """Refuse names that are no role and no part of a turn, which would leave turns out of the loss in silence.

    Raises:
        ValueError: Names the first, and the nearest that there is.
    """
    if train_on == ALL:
        return
    known = [*ROLES, "last", *PARTS, *extra_roles]
    wrong = [name for name in ([train_on] if isinstance(train_on, str) else train_on) if name not in known]
    if wrong or not train_on:
        near = "".join(f". Nearest: {name}" for name in get_close_matches(wrong[0], known, n=1)) if wrong else ""
        got = repr(wrong[0]) if wrong else "an empty list"
        raise ValueError(f"`data.train_on` must be {ALL}, or one or several of {', '.join(known)}, got {got}{near}")


def accumulation(rows_per_step: int, rows: int, *, devices: int, given: int) -> int:
    """Micro-batches that each device accumulates for `rows_per_step` rows over all devices.

    Args:
        rows_per_step: `data.global_batch_size`.
        rows: Rows of a micro-batch of one device.
        devices: Number of devices.
        given: `trainer.accumulate_grad_batches`; 1, Lightning's default, leaves it open.

    Raises:
        UsageError: If the rows of a step are no multiple of those of a micro-batch, or both settings are given.
    """
    at_once = rows * devices
    found, left = divmod(rows_per_step, at_once)
    if left or not found:
        below = f"{rows_per_step - left} or " if found else ""
        raise UsageError(
            f"`data.global_batch_size` is {rows_per_step}, and must be a multiple of the {at_once} rows of a"
            f" micro-batch on all devices (`data.train_batch_size` {rows} x {devices} devices): set it to {below}"
            f"{rows_per_step - left + at_once}, or choose another `data.train_batch_size`"
        )
    if given not in (1, found):
        raise UsageError(
            f"`data.global_batch_size` is {rows_per_step}, from which an accumulation of {found} follows, and"
            f" `trainer.accumulate_grad_batches` is {given}: set only one of them (1 leaves the latter open)"
        )
    return found


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


def check_step_size(global_batch_size: int | None, *, max_batch_tokens: int | str | None) -> None:
    """Refuse a number of rows per step together with micro-batches whose number of rows differs.

    Raises:
        ValueError: Names both settings.
    """
    if global_batch_size is not None and max_batch_tokens is not None:
        raise ValueError(
            "`data.global_batch_size` needs micro-batches of equal numbers of rows, and with `data.max_batch_tokens`"
            " these differ: set only one of them. Packed rows of fixed length keep memory in bounds with the first"
        )


def check_stream(streaming: bool, *, max_batch_tokens: int | str | None, shuffle_buffer: int) -> None:
    """Refuse a buffer without a stream; warn of a bound that training batches of a stream do not have.

    Raises:
        ValueError: Names both settings.
    """
    if not streaming and shuffle_buffer != SHUFFLE_BUFFER:
        raise ValueError("`data.shuffle_buffer` has no effect without `data.streaming`: all rows are shuffled")
    if streaming and max_batch_tokens == "auto":
        raise ValueError(
            "`data.max_batch_tokens: auto` tries the longest row, which `data.streaming` does not know: set"
            " `data.train_batch_size`"
        )
    if streaming and max_batch_tokens is not None:
        log.warning(
            "`data.max_batch_tokens` bounds the validation batches only: with `data.streaming`, training batches have"
            " `data.train_batch_size` rows whatever their length"
        )
