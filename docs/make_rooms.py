"""Writes docs/rooms.md: which room imports which, and which file imports which. Run: python docs/make_rooms.py."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HEAD = """# The rooms, drawn

Written by `python docs/make_rooms.py` from the imports themselves. An arrow points from the importing room to the
imported one, with the number of imports; `tests/test_architecture.py` holds which arrows may exist.

"""
DATA_ROOMS = ("sources", "formats", "template", "encoding", "batching")


def files(root: Path) -> list[Path]:
    """All modules of smollit, without empty packages."""
    return sorted(path for path in (root / "smollit").rglob("*.py") if path.read_text(encoding="utf-8").strip())


def imports(path: Path, root: Path) -> Iterator[Path]:
    """The files of smollit that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smollit"):
            for alias in node.names:
                # `from smollit.data.formats import messages` imports a file, `from smollit.batch import Batch` a name.
                yield from _file(root, f"{node.module}.{alias.name}") or _file(root, node.module or "")


def _file(root: Path, module: str) -> list[Path]:
    path = root.joinpath(*module.split("."))
    found = (path.with_suffix(".py"), path / "__init__.py")
    return [file for file in found if file.is_file()][:1]


def room(path: Path, root: Path) -> str:
    """smollit/data/formats/types.py -> data/formats; smollit/batch.py -> batch."""
    parts = path.relative_to(root / "smollit").with_suffix("").parts
    if parts[0] != "data" or len(parts) == 1:
        return parts[0]
    return "/".join(parts[:2]) if parts[1] in DATA_ROOMS else "data"


def arrows(root: Path) -> Counter[tuple[str, str]]:
    """Number of imports from room to room."""
    found = [(room(path, root), room(there, root)) for path in files(root) for there in set(imports(path, root))]
    return Counter((here, there) for here, there in found if here != there and "__init__" not in (here, there))


def page(root: Path) -> str:
    """The text of docs/rooms.md."""
    drawn = [f"  {here} -->|{count}| {there}" for (here, there), count in sorted(arrows(root).items())]
    lines = ["```mermaid", "flowchart TD", *drawn, "```", "", "## File by file", ""]
    for path in files(root):
        there = sorted({str(other.relative_to(root / "smollit")) for other in imports(path, root)})
        names = ", ".join(f"`{name}`" for name in there) or "nothing of smollit"
        lines.append(f"- `{path.relative_to(root / 'smollit')}` imports {names}")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "rooms.md").write_text(page(here.parent), encoding="utf-8")
