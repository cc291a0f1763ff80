"""The docs say what is true: each test that docs/cases.md names exists and holds that case."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def load_maker() -> ModuleType:
    """docs/make_cases.py, which writes docs/cases.md."""
    spec = importlib.util.spec_from_file_location("make_cases", ROOT / "docs" / "make_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_cases_is_up_to_date() -> None:
    """Writing docs/cases.md anew gives the file that is there."""
    assert load_maker().table(ROOT) == (ROOT / "docs" / "cases.md").read_text(encoding="utf-8")
