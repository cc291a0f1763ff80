"""A resumed run trains on what it began with: content is compared, not only names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def other_row(rows: str) -> str:
    first, *rest = rows.splitlines()
    row = json.loads(first)
    row["messages"][-1]["content"] += " Yes."
    return "\n".join([json.dumps(row), *rest]) + "\n"


def other_order(rows: str) -> str:
    return "\n".join(reversed(rows.splitlines())) + "\n"


def other_token(tokenizer: str) -> str:
    settings = json.loads(tokenizer)
    settings["model"]["merges"].pop()
    return json.dumps(settings)


CHANGES = {
    "a row": ("data/train_sft.jsonl", other_row, "data.dataset"),
    "the order": ("data/train_sft.jsonl", other_order, "data.dataset"),
    "the template": (
        "template.jinja",
        lambda text: text.replace("<|im_start|>", "<|im_start|> "),
        "data.chat_template",
    ),
    "the tokenizer": ("tokenizer/tokenizer.json", other_token, "data.tokenizer_name"),
}


# promise: same-content
# case: B4
@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_changed_content_under_the_same_name_is_refused(
    streaming: bool, fit: Any, tiny_model: Path, tiny_data: dict[str, Path], tmp_path: Path
) -> None:
    """The same path and the same number of rows, but other content: the setting is named, and no step is made, unless
    forced. Of a stream, only the files' names and sizes are compared, so another order passes."""
    shutil.copytree(tiny_data["ultrachat"], tmp_path / "data")
    shutil.copytree(tiny_model, tmp_path / "tokenizer")
    shutil.copy(Path(__file__).parents[3] / "smollit/data/template/chatml.jinja", tmp_path / "template.jinja")
    data = {"dataset": str(tmp_path / "data"), "tokenizer_name": str(tmp_path / "tokenizer"), "streaming": streaming}
    data["chat_template"] = str(tmp_path / "template.jinja")
    assert fit(tmp_path / "run", data=data, max_steps=1).error is None
    for name, (file, change, setting) in CHANGES.items():
        before = (tmp_path / file).read_text()
        edit(tmp_path / file, change)
        resumed = fit(tmp_path / "run", data=data, max_steps=1)
        if streaming and name == "the order":
            assert resumed.error is None
        else:
            assert isinstance(resumed.error, ValueError) and resumed.steps == []
            assert f"the content of `{setting}` is not what the run began with" in str(resumed.error)
        (tmp_path / file).write_text(before)
    edit(tmp_path / file, change)
    assert fit(tmp_path / "run", data=data, max_steps=2, force_resume=True).error is None


# case: B4
@pytest.mark.slow
def test_changed_trainer_settings_are_shown(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With old and new value; another folder is no change, and the run resumes."""
    fit(tmp_path / "one", max_steps=1)
    last = tmp_path / "one/checkpoints/last.ckpt"
    assert fit(tmp_path / "two", ckpt_path=last, max_steps=2, gradient_clip_val=0.5, precision="64-true").error is None
    shown = ("gradient_clip_val` (1.0 -> 0.5)", "max_steps` (1 -> 2)", "precision` (None -> '64-true')")
    assert all(f"`trainer.{change}" in caplog.text for change in shown)
    assert "default_root_dir" not in caplog.text
