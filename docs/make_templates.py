"""Writes the table of docs/templates.md: how smollit reads the chat templates that TRL ships. `make docs` runs it."""

from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer

from smollit.commands.inspect.template_view import SHAPES, TINY, Tried, try_shape
from smollit.data.template.template import ChatTemplate, load_template

PAGE = Path(__file__).parent / "templates.md"
START, END = "<!-- table: docs/make_templates.py -->\n", "<!-- end of table -->\n"
MARKS = {"read": "✓", "refused": "–", "wrong": "**✗**"}


def templates() -> list[Path]:
    """The templates of the installed TRL, which is not imported."""
    found = find_spec("trl")
    return sorted((Path(found.origin).parent / "chat_templates").glob("*.jinja")) if found and found.origin else []


def read(path: Path) -> tuple[ChatTemplate, dict[str, Tried]] | str:
    """The template and what it makes of each shape; or why it is refused."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    try:
        template = load_template(tokenizer, str(path))
    except ValueError as error:
        return str(error)
    return template, {name: try_shape(template, shape) for name, shape in SHAPES.items()}


def table(found: dict[str, tuple[ChatTemplate, dict[str, Tried]] | str]) -> str:
    """The table, in Markdown."""
    lines = ["| template | found by | " + " | ".join(SHAPES) + " | a turn |", "|---" * (len(SHAPES) + 3) + "|"]
    for name, result in found.items():
        if isinstance(result, str):
            lines.append(f"| {name} | refused |" + " |" * len(SHAPES) + " |")
            continue
        template, tried = result
        marks = " | ".join(MARKS[one.verdict] for one in tried.values())
        span = repr("".join(tried["one turn"].loss))[1:-1].replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {name} | {template.span_source} | {marks} | {span} |")
    return "\n".join(lines) + "\n"


def page(content: str) -> str:
    """The page with this table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return before + START + content + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(table({path.stem: read(path) for path in templates()})), encoding="utf-8")
