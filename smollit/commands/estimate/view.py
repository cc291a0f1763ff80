"""An estimate as text: sections of a bold title and lines of a name and a value."""

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
Section = tuple[Text, list[tuple[str, str]]]


def show(console: Console, found: "Estimate") -> None:
    """Print memory, the epoch, the time, and what to change if it does not fit."""
    sections = [_memory(found, is_plain(console)), _fit(found), _epoch(found)]
    if not found.fits and found.fits is not None:
        entries = [(f"{number}.", entry) for number, entry in enumerate(found.advice, 1)]
        sections.insert(2, (_title("settings that need less memory, in the order to try"), entries))
    if found.seconds_per_step is not None and found.hours is not None:
        run = f"about {hours(found.hours)}, without validation"
        lines = [("per step", f"about {found.seconds_per_step:.3g} s"), ("run", run)]
        sections.append((_title("time, from a few steps on this device in its current state"), lines))
    for title, lines in sections:
        say(console, title)
        for name, value in lines:
            say(console, f"{name} {value}" if name.endswith(".") else f"{name:<13}{value}".rstrip(), indent=2)


def _memory(found: "Estimate", plain: bool) -> Section:
    rows, size = found.heaviest
    lines = [
        ("parameters", f"{found.trainable:,} trainable of {found.parameters:,}"),
        ("micro-batch", f"{rows:,} rows, {size:,} positions"),
    ]
    for name, number in found.memory.items():
        bar = "" if plain else "█" * round(BAR * number / max(found.memory.values())) + " "
        lines.append((name, f"{gib(number):>9}  {bar}{EXPLAINED.get(name, '')}"))
    return _title(f"peak memory of each device  {gib(found.peak)}, at the heaviest micro-batch"), lines


def _fit(found: "Estimate") -> Section:
    if found.free is None:
        return Text("free memory is unknown on this system"), []
    needed = found.peak - found.memory["process"]
    said, style = ("fits", "bold green") if found.fits else ("DOES NOT FIT", "bold red")
    rows = int((found.most_positions or 0) * found.heaviest[0] / found.heaviest[1])
    most = f"about {found.most_positions:,} positions: {rows:,} rows of this length"
    sentence = f"{said}: {gib(needed)} are needed in addition to what is in use now, {gib(found.free)} are free"
    return Text(sentence, style), [("would fit", most)] if found.most_positions else []


def _epoch(found: "Estimate") -> Section:
    epoch = found.epoch
    fraction = epoch.loss_tokens / max(epoch.tokens, 1)
    lines = [
        ("examples", f"{epoch.examples:,} in {epoch.rows:,} rows"),
        ("tokens", f"{epoch.tokens:,}, {epoch.loss_tokens:,} loss tokens ({fraction:.0%})"),
        ("padding", f"{epoch.padding_fraction:.1%} of the computed positions"),
        ("steps", f"{epoch.steps:,} optimizer steps per epoch, {epoch.run_steps:,} in the run"),
    ]
    if epoch.packed_fraction is not None:
        lines.insert(2, ("packed", f"{epoch.packed_fraction:.1%} of the rows' positions hold tokens"))
    return _title("one epoch"), lines


def _title(text: str) -> Text:
    return Text(text, style="bold")


def gib(number: int) -> str:
    """Bytes as GiB or MiB."""
    return f"{number / GIB:.2f} GiB" if number >= GIB else f"{number / 1024**2:.1f} MiB"


def hours(number: float) -> str:
    """Hours, or minutes below one."""
    return f"{number:.1f} hours" if number >= 1 else f"{number * 60:.1f} minutes"
