"""Every example of docs/extend.md runs: the parts of one page in one file, and each command with a tiny model."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from smollit.main import main

pytestmark = pytest.mark.slow  # each example trains
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
SECTION = re.compile(
    r"^## (?P<title>.+?)$.*?^```python\n(?P<code>.*?)^```$.*?^```\npython -m smollit (?P<command>.+?)\n", re.M | re.S
)
SECTIONS = {found["title"]: found for found in SECTION.finditer(PAGE)}
THREADS = {"What barks?": "A dog.", "What meows?": "A cat.", "What swims?": "Fish.", "What flies?": "A bird."}
SAMPLES = ROOT / "smollit" / "data" / "samples"


@pytest.fixture
def started_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that commands are started from, with my_parts.py and threads.jsonl."""
    (tmp_path / "my_parts.py").write_text("\n\n".join(found["code"] for found in SECTIONS.values()))
    (tmp_path / "threads.jsonl").write_text("".join(f'{{"thread": "{a}|{b}"}}\n' for a, b in THREADS.items()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_parts", None)  # each test has its own


def tiny(command: list[str], model: Path, run: Path) -> list[str]:
    """What makes a shipped config small enough for a test, as far as the command leaves it open."""
    task = "dpo" if "configs/dpo.yaml" in command else "sft"
    rows = {"sft": SAMPLES / "ultrachat", "dpo": SAMPLES / "ultrafeedback"}[task]
    settings = {
        "model.model_name": model,
        "data.dataset": rows,
        "data.cache_dir": run / "cache",
        "data.max_length": 128,
        "data.num_workers": 0,
        "data.num_proc": 1,
        "trainer.default_root_dir": run,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.precision": "32-true",
        "trainer.accumulate_grad_batches": 1,
        "model.num_warmup_steps": 0,
        "trainer.max_steps": 2,
        "trainer.val_every_n_steps": 1,
        "trainer.limit_val_batches": 1,
        "trainer.enable_progress_bar": "false",
    }
    if task == "dpo":
        settings["model.reference_name"] = model
    if "my_parts.ThreadsDataModule" in command:
        settings["data.dataset"] = "threads.jsonl"
    return [f"--{key}={value}" for key, value in settings.items() if f"--{key}" not in command]


# promise: own-parts
@pytest.mark.parametrize("title", ["A loss", "A data format", "A data module", "A callback", "A module"])
def test_a_part_of_ones_own(title: str, started_in: Path, tiny_model: Path) -> None:
    """The command of the page trains two steps with the part, and the part is in use."""
    command = shlex.split(SECTIONS[title]["command"].replace("configs/", f"{ROOT}/configs/"))
    where = command.index("--config") + 2
    made = [*command[:where], *tiny(command_names(command), tiny_model, started_in / "run"), *command[where:]]
    cli = main(made)
    assert cli.trainer.global_step == 2
    model: nn.Module = cli.model
    parts = [cli.model, getattr(cli.model, "loss", None), cli.datamodule, *cli.trainer.callbacks]
    used = {type(part).__name__ for part in parts if type(part).__module__ == "my_parts"}
    assert used == {"A data format": set()}.get(title, {SECTIONS[title]["code"].split("class ")[-1].split("(")[0]})
    assert all(weight.isfinite().all() for weight in model.parameters())
    if title in ("A data format", "A data module"):
        report = cli.datamodule.reports["train"]
        assert report.kept == {"A data format": 3, "A data module": 2}[title]


def command_names(command: list[str]) -> list[str]:
    """The command's words, with configs as the page names them."""
    return [word.replace(f"{ROOT}/", "") for word in command]


def test_the_page_is_short() -> None:
    """20 lines each: the code of a section, without blank lines and the docstring's Args."""
    for title, found in SECTIONS.items():
        lines = [line for line in found["code"].splitlines() if line.strip()]
        assert len(lines) <= 25, title
    assert len(SECTIONS) == 5
