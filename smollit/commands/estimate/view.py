"""An estimate as a person reads it."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from smollit.commands.console import is_plain, say
from smollit.training.memory import GIB

if TYPE_CHECKING:
    from smollit.commands.estimate.estimate import Estimate

BAR = 24  # characters of the largest part
EXPLAINED = {
    "activations": "kept for the backward pass, and what is computed at that moment",
    "head chunk": "logits of model.chunk_size tokens, and their gradients",
    "allocator": "temporary tensors, and freed memory that the allocator keeps",
    "process": "libraries and data, before the model",
}


def show(console: Console, found: "Estimate") -> None:
    """Print memory, the epoch, the time, and what to change if it does not fit."""
    trainable = f"{found.trainable:,} trainable of {found.parameters:,}"
    rows, size = found.heaviest
    _section(console, f"parameters  {trainable}")
    _section(console, f"peak memory of each device  {gib(found.peak)}, at the heaviest micro-batch")
    _line(console, "micro-batch", f"{rows:,} rows, {size:,} positions")
    for name, number in found.memory.items():
        _line(console, name, f"{gib(number):>9}  {_bar(number, found, is_plain(console))}{EXPLAINED.get(name, '')}")
    _show_fit(console, found)
    _show_epoch(console, found)
    _show_time(console, found)


def _show_fit(console: Console, found: "Estimate") -> None:
    if found.free is None:
        _line(console, "free", "unknown on this system")
    else:
        needed = found.peak - found.memory["process"]
        said = "fits" if found.fits else "DOES NOT FIT"
        style = "bold green" if found.fits else "bold red"
        say(
            console,
            Text(f"{said}: {gib(needed)} are needed besides what is held now, {gib(found.free)} are free", style),
        )
    if found.most_positions:
        per_row = found.heaviest[1] / found.heaviest[0]
        most = f"about {found.most_positions:,} positions: {int(found.most_positions / per_row):,} rows of this length"
        _line(console, "would fit", most)
    if not found.fits:
        _section(console, "what needs less memory, in the order to try")
        for number, entry in enumerate(found.advice, 1):
            say(console, f"{number}. {entry}", indent=2)


def _show_epoch(console: Console, found: "Estimate") -> None:
    epoch = found.epoch
    _section(console, "one epoch")
    _line(console, "examples", f"{epoch.examples:,} in {epoch.rows:,} rows")
    _line(
        console,
        "tokens",
        f"{epoch.tokens:,}, {epoch.loss_tokens:,} with loss ({epoch.loss_tokens / max(epoch.tokens, 1):.0%})",
    )
    if epoch.packed_fraction is not None:
        _line(console, "packed", f"{epoch.packed_fraction:.1%} of the rows' positions hold tokens")
    _line(console, "padding", f"{epoch.padding_fraction:.1%} of the computed positions")
    _line(console, "steps", f"{epoch.steps:,} optimizer steps per epoch, {epoch.run_steps:,} in the run")


def _show_time(console: Console, found: "Estimate") -> None:
    if found.seconds_per_step is not None and found.hours is not None:
        _section(console, "time, from a few passes on this device as it is now")
        _line(console, "per step", f"about {found.seconds_per_step:.3g} s")
        _line(console, "run", f"about {hours(found.hours)}, without validation")


def _section(console: Console, title: str) -> None:
    say(console, Text(title, style="bold"))


def _line(console: Console, name: str, value: str) -> None:
    say(console, f"{name:<13}{value}".rstrip(), indent=2)


def _bar(number: int, found: "Estimate", plain: bool) -> str:
    return "" if plain else "█" * round(BAR * number / max(found.memory.values())) + " "


def gib(number: int) -> str:
    """Bytes as a person reads them."""
    return f"{number / GIB:.2f} GiB" if number >= GIB else f"{number / 1024**2:.1f} MiB"


def hours(number: float) -> str:
    """Hours as a person reads them."""
    return f"{number:.1f} hours" if number >= 1 else f"{number * 60:.1f} minutes"
