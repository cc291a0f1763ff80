"""Hooks of mkdocs: pages that are files of the repository, and the API reference.

The docs link to files of the repository. Those that are pages of the site become links to them; of all others the text
stays.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Files of the repository that are pages, by the name of the page.
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "agents.md": "AGENTS.md"}
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
# What is meant for users of smollit from Python, by section.
API = {
    "Trainer": ["smollit.training.SmollitTrainer"],
    "Modules": ["smollit.modules.SFTModule", "smollit.modules.DPOModule", "smollit.modules.FineTuningModule"],
    "Data": [
        "smollit.data.ChatDataModule",
        "smollit.data.PreferenceDataModule",
        "smollit.data.UltraChatDataModule",
        "smollit.data.UltraFeedbackDataModule",
        "smollit.data.Part",
        "smollit.batch.Batch",
    ],
    "Losses": ["smollit.losses"],
    "Schedules": ["smollit.schedules"],
    "Metrics": ["smollit.metrics"],
    "Callbacks": ["callbacks"],
    "Verdict": ["smollit.verdict.curves", "smollit.verdict.training", "smollit.verdict.preferences"],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "api.md", content=api()))
    return files


def api() -> str:
    """The reference, made of docstrings: `Args:` of a class are its settings."""
    sections = [f"## {title}\n\n" + "\n\n".join(f"::: {name}" for name in names) + "\n" for title, names in API.items()]
    return (
        "# API\n\nEvery `Args:` is a setting too: `--model.learning_rate`, `data.init_args.dataset`.\n\n"
        + "\n".join(sections)
    )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to pages, or into their text."""
    folder = "" if page.file.src_uri in PAGES else "docs"
    of_source = {source: name for name, source in PAGES.items()}

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["path"]))
        inside = of_source.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if inside is not None:
            return f"[{match['text']}]({inside}{match['anchor'] or ''})"
        assert (ROOT / target).exists(), f"{page.file.src_uri} links to {target}, which does not exist"
        return match["text"]

    return LINK.sub(replaced, markdown)
