"""The docs as a site: it builds without a warning, and the API reference has the settings."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT


# promise: site
@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """No broken link or anchor; each page of docs/ is built; the API page has arguments and docstrings."""
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {name for name in pages if not (tmp_path / name / "index.html").is_file()} == set()
    api = (tmp_path / "api/index.html").read_text()
    for text in ("SmollitTrainer", "val_every_n_steps", "label_smoothing", "SampleGenerations", "eq. 7"):
        assert text in api
    assert "http-equiv" not in api and 'src="http' not in api


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs only remarks on pages that no one finds."""
    text = (ROOT / "mkdocs.yml").read_text()
    named = {str(page) for page in _leaves(yaml.safe_load(text)["nav"])}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= named


def _leaves(node: object) -> list[object]:
    if isinstance(node, list):
        return [leaf for item in node for leaf in _leaves(item)]
    return _leaves(list(node.values())) if isinstance(node, dict) else [node]
