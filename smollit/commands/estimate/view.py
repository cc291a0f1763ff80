"""An estimate as text: sections of a title and lines of a name and a value."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from smollit.commands.console import is_plain, say
from smollit.training.memory import GIB

if TYPE_CHECKING:
    from smollit.commands.estimate.estimate import Estimate

BAR = 24  # characters of the largest part
EXPLAINED = {
    "activations": "saved for the backward pass",
    "head chunk": "logits of model.chunk_size tokens, and their gradients",
    "allocator": "temporary tensors, and freed memory that the allocator keeps",
    "process": "libraries and data, before the model",
}
Lines = dict[str, str]  # a value by its name


def show(console: Console, found: "Estimate") -> None:
    """Print memory, the epoch, the time, and what to change if it does not fit."""
    title = f"peak memory of each device  {_least(found)}{gib(found.peak)}, at the heaviest micro-batch"
    _say(console, title, _memory(console, found))
    _say(console, *_fit(found))
    if found.fits is False:
        _say(console, "settings that need less memory, in the order to try", {})
        for number, entry in enumerate(found.advice, 1):
            say(console, f"{number}. {entry}", indent=2)
    _say(console, "one epoch", _epoch(found))
    if found.seconds_per_step is not None and found.hours is not None:
        run = f"about {hours(found.hours)}, without validation"
        lines = {"per step": f"about {found.seconds_per_step:.3g} s", "run": run}
        _say(console, "time, from a few steps on this device in its current state", lines)


def _say(console: Console, title: str, lines: Lines, style: str = "bold") -> None:
    say(console, Text(title, style))
    for name, value in lines.items():
        say(console, f"{name:<13}{value}".rstrip(), indent=2)


def _memory(console: Console, found: "Estimate") -> Lines:
    rows, size = found.heaviest
    lines = {"parameters": f"{found.trainable:,} trainable of {found.parameters:,}"}
    lines["micro-batch"] = f"{rows:,} rows, {size:,} positions"
    for name, number in found.memory.items():
        bar = "" if is_plain(console) else "█" * round(BAR * number / max(found.memory.values())) + " "
        lines[name] = f"{gib(number):>9}  {bar}{EXPLAINED.get(name, '')}"
    return lines


def _fit(found: "Estimate") -> tuple[str, Lines, str]:
    if found.free is None:
        return "free memory is unknown on this system", {}, ""
    needed, most = _least(found) + gib(found.peak - found.memory["process"]), found.most_positions or 0
    said, style = ("fits", "bold green") if found.fits else ("DOES NOT FIT", "bold red")
    rows = int(most * found.heaviest[0] / found.heaviest[1])
    lines = {"would fit": f"about {most:,} positions: {rows:,} rows of this length"} if most else {}
    return f"{said}: {needed} are needed in addition to what is in use now, {gib(found.free)} are free", lines, style


def _least(found: "Estimate") -> str:
    """Without a probe, temporary tensors are not counted."""
    return "" if "allocator" in found.memory else "at least "


def _epoch(found: "Estimate") -> Lines:
    epoch = found.epoch
    loss_tokens = f"{epoch.loss_tokens:,} loss tokens ({epoch.loss_tokens / max(epoch.tokens, 1):.0%})"
    lines = {"examples": f"{epoch.examples:,} in {epoch.rows:,} rows", "tokens": f"{epoch.tokens:,}, {loss_tokens}"}
    if epoch.packed_fraction is not None:
        lines["packed"] = f"{epoch.packed_fraction:.1%} of the rows' positions hold tokens"
    lines["padding"] = f"{epoch.padding_fraction:.1%} of the computed positions"
    lines["steps"] = f"{epoch.steps:,} optimizer steps per epoch, {epoch.run_steps:,} in the run"
    return lines


def gib(number: int) -> str:
    """Bytes as GiB or MiB."""
    return f"{number / GIB:.2f} GiB" if number >= GIB else f"{number / 1024**2:.1f} MiB"


def hours(number: float) -> str:
    """Hours, or minutes below one."""
    return f"{number:.1f} hours" if number >= 1 else f"{number * 60:.1f} minutes"
