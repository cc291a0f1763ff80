"""How responses are shown: as they grow, of two models side by side on a wide terminal."""

from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from smollit.commands.console import visible
from smollit.models.generation import Finish

MIN_WIDTH = 80  # for two columns
MARKS: dict[Finish, str] = {
    "last_position": "[ends at the model's last position: /reset starts anew]",
    "max_new_tokens": "[ends at max_new_tokens]",
}


class View:
    """Shows responses on a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.in_columns = console.is_terminal and console.width >= MIN_WIDTH

    def say(self, line: str = "") -> None:
        """Print a line, never as markup."""
        self.console.print(Text(visible(line)), soft_wrap=True, highlight=False)

    def one(self, pieces: Iterator[str], *, title: str | None = None) -> str:
        """Print a response piece by piece, and return it."""
        if title is not None:
            self.say(f"[{title}]")
        text = ""
        for piece in pieces:
            text += piece
            self.console.print(Text(visible(piece)), end="", soft_wrap=True, highlight=False)
        self.say()
        return text

    def two(self, responses: list[tuple[str, Iterator[str]]]) -> list[str]:
        """Print two responses, in columns where there is room, and return them."""
        if not self.in_columns:
            return [self.one(pieces, title=title) for title, pieces in responses]
        texts = ["", ""]
        with Live(console=self.console, refresh_per_second=8, vertical_overflow="visible") as live:
            for index, (_, pieces) in enumerate(responses):
                for piece in pieces:
                    texts[index] += piece
                    live.update(columns([title for title, _ in responses], texts))
        return texts

    def mark(self, finish: Finish, title: str = "") -> None:
        """Say where a response ended, if it was not at the end of the turn."""
        if finish in MARKS:
            self.say(f"{title and title + ': '}{MARKS[finish]}")


def columns(titles: list[str], texts: list[str]) -> Table:
    """Two texts side by side."""
    table = Table(expand=True)
    for title in titles:
        table.add_column(Text(title), ratio=1)
    table.add_row(*(Text(visible(text)) for text in texts))
    return table
