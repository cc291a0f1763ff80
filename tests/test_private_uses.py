"""Private parts of other libraries that smollit uses: each with its reason, and still there in the installed versions.

Only imports and attributes of other libraries count, as do overridden private methods and the state of Lightning's
loops. A new one fails here until it is listed, so that it is a decision.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "smollit").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")])
# (file, name): the reason why there is no public way.
LISTED = {
    (
        "smollit/data/sources/source.py",
        "_fingerprint",
    ): "part of the cache key: rows have no public identity",
    (
        "smollit/data/template/rendering/jinja.py",
        "_compile_jinja_template",
    ): "transformers renders in it",
    ("smollit/models/sharding.py", "_foreach_mul_"): "one launch for all gradients, as torch's optimizers do",
    ("smollit/models/attention/functions.py", "_C"): "holds the next one",
    (
        "smollit/models/attention/functions.py",
        "_current_graph_task_id",
    ): "whether this is a backward pass, as torch's checkpoint asks",
    ("smollit/metrics/base.py", "_apply"): "Lightning casts whole modules, and a count in bf16 ends at 256",
    ("smollit/training/trainer.py", "_checkpoint_connector"): "holds the next one",
    ("smollit/training/trainer.py", "_user_managed"): "Lightning resumes unasked from what a fault or SLURM left",
    ("smollit/training/logs/table.py", "_experiment"): "CSVLogger's own writer removes the rows of an earlier start",
    ("smollit/training/logs/curves.py", "_experiment"): "a logger whose writer is closed makes a new one",
    (
        "smollit/training/logs/loggers.py",
        "_version",
    ): "whether a user named one: a new one splits a resumed run",
    ("smollit/training/steps.py", "_batches_that_stepped"): "in set_counters: Lightning's loggers count by it",
}

DOCUMENTED = {"_replace", "_asdict", "_fields", "_exit"}  # of NamedTuple and os: public, whatever their first letter


def own_names(trees: list[ast.AST]) -> set[str]:
    """Names with one underscore that smollit itself defines: methods, functions, attributes, constants."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found - {name for _, name in LISTED}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in DOCUMENTED


def uses(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Private names of others in a file: imported, read, set, or named in a string that is a key."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("smollit", "callbacks")):
            yield from (alias.name for alias in node.names if is_private(alias.name))
            yield from (part for part in (node.module or "").split(".") if is_private(part))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            yield from [key for key in [node.slice.value] if isinstance(key, str) and is_private(key)]


# promise: private-names
@pytest.mark.slow
def test_every_private_use_is_listed_and_every_listed_one_is_used() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    own = own_names(list(trees.values()))
    found = {(str(path.relative_to(ROOT)), name) for path, tree in trees.items() for name in uses(tree, own)}
    assert found == set(LISTED)
    assert len(found) < 15


# Classes of other libraries whose private methods smollit overrides, by the file that does so.
OVERRIDDEN = {("smollit/metrics/base.py", "torchmetrics", "Metric", "_apply")}


@pytest.mark.parametrize(("file", "module", "name", "method"), OVERRIDDEN)
def test_overridden_private_methods_are_still_there(file: str, module: str, name: str, method: str) -> None:
    assert f"def {method}(" in (ROOT / file).read_text(encoding="utf-8")
    assert callable(getattr(getattr(importlib.import_module(module), name), method))


def test_the_installed_versions_still_have_them(tmp_path: Path) -> None:
    """A name that a new version takes away fails here, with its name, and not in a user's run."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    assert hasattr(trainer._checkpoint_connector, "_user_managed")
    assert "_user_managed" in inspect.getsource(type(trainer._checkpoint_connector)._select_ckpt_path)
    loops = trainer.fit_loop.state_dict()
    assert "_batches_that_stepped" in loops["epoch_loop.state_dict"]
    counts = {"ready", "started", "processed", "completed"}
    for name in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress", "epoch_progress"):
        assert counts <= set(loops[name]["current"]) and counts <= set(loops[name]["total"])
    assert "is_last_batch" in loops["epoch_loop.batch_progress"]
    assert CSVLogger(tmp_path)._experiment is CSVLogger(tmp_path)._version is None
    assert TensorBoardLogger(tmp_path)._experiment is None
    assert Dataset.from_dict({"a": [1]})._fingerprint
    assert callable(torch.nn.Module._apply)
    assert torch._C._current_graph_task_id() == -1
    templates = importlib.import_module("transformers.utils.chat_template_utils")
    assert callable(templates._compile_jinja_template)
