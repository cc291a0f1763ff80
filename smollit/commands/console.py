"""Paragraphs on a terminal or in a pipe: control characters are made visible, and colour never is the only mark."""

import re
import textwrap

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

# Characters that a terminal executes or hides: control and direction characters, tags, surrogates.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with control characters made visible: ESC becomes ␛, a direction mark its number."""
    return UNSEEN.sub(lambda match: _symbol(ord(match[0])), text)


def is_plain(console: Console) -> bool:
    """Whether there are no colours, so that brackets replace them."""
    return console.no_color or not console.is_terminal


def say(console: Console, line: str | Text, *, indent: int = 0) -> None:
    """Print a paragraph, never as markup: wrapped on a terminal, unchanged elsewhere."""
    text = Text(visible(line)) if isinstance(line, str) else line
    encoding = console.encoding or "utf-8"
    shown = text.plain.encode(encoding, "backslashreplace").decode(encoding)
    if shown != text.plain:  # an old console without these brackets
        text = Text(shown)
    if is_plain(console):
        bare = textwrap.indent(text.plain, " " * indent, lambda line: True)
        console.print(Text(bare), soft_wrap=True, highlight=False)
    else:
        console.print(Padding(text, (0, 0, 0, indent)), highlight=False)


def _symbol(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\u{{{code:x}}}"
