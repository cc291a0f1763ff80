"""The rooms of the house and the arrows between them: docs/design.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Who may import whom inside smollit; a room may always import itself.
ARROWS = {
    "": set(),  # smollit/__init__.py
    "__main__": {"main", "commands"},
    "main": {"cli", "commands"},
    "python": {"commands", "data", "modules"},
    "cli": {
        "errors",
        "paths",
        "choices",
        "schedules",
        "losses",
        "models",
        "modules",
        "data",
        "commands",
        "training",
    },
    "batch": set(),
    "errors": set(),
    "paths": {"errors"},
    "choices": set(),
    "precision": set(),
    "schedules": {"choices"},
    "functional": {"batch"},
    "losses": {"functional", "choices"},
    "metrics": {"functional"},
    "data": {"batch", "errors", "paths"},
    "models": {"choices", "functional", "batch", "errors", "paths"},
    "optim": {"choices", "schedules"},
    "modules": {"models", "functional", "losses", "choices", "optim", "schedules", "metrics", "batch"},
    "commands": {
        "batch",
        "errors",
        "paths",
        "precision",
        "functional",
        "losses",
        "metrics",
        "data",
        "models",
        "modules",
        "training",
        "verdict",
    },
    "verdict": set(),
    "training": {
        "batch",
        "errors",
        "paths",
        "precision",
        "verdict",
        "functional",
        "losses",
        "schedules",
        "metrics",
        "data",
        "models",
        "modules",
    },
}
# The same between the rooms of data/, which are the stages of a row's way; "" are the files above them.
DATA_ARROWS = {
    "sources": set(),
    "formats": {"sources"},
    "template": {"formats"},
    "encoding": {"sources", "formats", "template"},
    "batching": {"sources", "formats", "template", "encoding"},
    "": {"sources", "formats", "template", "encoding", "batching"},
}
# Other packages that a room does without, however handy.
FORBIDDEN = {
    "": {"torch", "transformers", "lightning", "datasets"},
    "batch": {"transformers", "lightning", "datasets"},
    "errors": {"torch", "transformers", "lightning", "datasets"},
    "paths": {"torch", "transformers", "lightning", "datasets"},
    "choices": {"torch", "transformers", "lightning", "datasets"},
    "precision": {"transformers", "lightning", "datasets"},
    "verdict": {"torch", "transformers", "lightning", "datasets"},
    "schedules": {"transformers", "lightning", "datasets", "torchmetrics"},
    "functional": {"transformers", "lightning", "datasets", "torchmetrics"},
    "optim": {"transformers", "datasets", "torchmetrics"},
    "losses": {"transformers", "lightning", "datasets", "torchmetrics"},
    "metrics": {"transformers", "lightning", "datasets"},
    "data": {"torchmetrics"},
    "models": {"datasets", "torchmetrics"},
    "modules": {"datasets"},
}
FILES = sorted((ROOT / "smollit").rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    """smollit.models.causal_lm -> models; smollit itself -> ''."""
    return parts[1] if len(parts) > 1 else ""


def data_room(parts: tuple[str, ...]) -> str:
    """smollit.data.sources.files -> sources; smollit.data.datamodule and smollit.data itself -> ''."""
    return parts[2] if len(parts) > 2 and parts[2] in DATA_ARROWS else ""


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Every module that a file imports, anywhere in it, as its parts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide their arrow"
            module = tuple((node.module or "").split("."))
            # `from smollit import data` is an arrow to data, `from smollit import __version__` is none.
            is_root = module == ("smollit",)
            yield from ((*module, alias.name) for alias in node.names) if is_root else (module,)


# promise: rooms-of-code
# Section "Rooms" of docs/design.md.
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_arrow_that_is_not_in_the_plan(path: Path) -> None:
    """Each import of a file leads to its own room, or along an arrow; never to callbacks or tests."""
    here = room(path.relative_to(ROOT).with_suffix("").parts).replace("__init__", "")
    for parts in imports(path):
        assert parts[0] not in {"callbacks", "tests", "benchmarks"}, f"{path} imports {'.'.join(parts)}"
        assert parts[0] not in FORBIDDEN.get(here, set()), f"{here} does without {parts[0]}"
        there = room(parts)
        if parts[0] == "smollit" and there not in {"", "__version__"}:  # the root holds the version, and nothing else
            assert there == here or there in ARROWS[here], f"{path}: there is no arrow {here} -> {there}"


@pytest.mark.parametrize("path", sorted((ROOT / "smollit/data").rglob("*.py")), ids=lambda path: path.stem)
def test_the_rooms_of_data_import_only_earlier_stages(path: Path) -> None:
    """sources <- formats <- template <- encoding <- batching <- the data modules."""
    here = data_room(path.relative_to(ROOT).with_suffix("").parts)
    for parts in imports(path):
        if parts[:2] == ("smollit", "data"):
            there = data_room(parts)
            assert there == here or there in DATA_ARROWS[here], f"{path}: there is no arrow {here} -> {there or 'data'}"


def test_every_room_has_its_arrows() -> None:
    """A new room must say here what it may import."""
    rooms = {room(path.relative_to(ROOT).with_suffix("").parts).replace("__init__", "") for path in FILES}
    assert rooms == set(ARROWS)
    folders = {path.parent.name for path in (ROOT / "smollit/data").glob("*/__init__.py")}
    assert folders == set(DATA_ARROWS) - {""}


def test_callbacks_import_only_smollit() -> None:
    """callbacks -> smollit, except the command line; of the project, nothing else."""
    for path in sorted((ROOT / "callbacks").rglob("*.py")):
        ours = [parts for parts in imports(path) if parts[0] in {"smollit", "tests", "benchmarks"}]
        assert all(parts[0] == "smollit" and room(parts) not in {"main", "__main__"} for parts in ours)


def test_tests_are_no_packages() -> None:
    """tests/callbacks/__init__.py would shadow the package callbacks."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_import_smollit_is_light() -> None:
    """Neither torch nor transformers is loaded by `import smollit`."""
    script = "import smollit, sys; print(smollit.__version__, sorted({'torch', 'transformers'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.split(maxsplit=1)[1].strip() == "[]"
