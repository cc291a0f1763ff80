"""A part on its way to examples: found once, tokenised once, and not read again when it is in the cache."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from lightning.pytorch.trainer.states import TrainerFn
from smollit.data.encoding.prepared import Prepared, prepare
from transformers import PreTrainedTokenizerBase

from smollit.data import ChatDataModule
from smollit.data.encoding.encoder import EncodeOptions
from smollit.data.sources.mixture import Part
from smollit.data.template.template import load_template

TINY = Path(__file__).resolve().parents[2] / "smollit" / "models" / "tiny"
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Any:
    def make_one(rows: list[dict[str, Any]], label: str = "train", streaming: bool = False, **part: Any) -> Prepared:
        options = EncodeOptions("chat", 64)
        named = Part(write(tmp_path / "mine.jsonl", rows), **({"split": "all"} | part))
        template = load_template(tiny_tokenizer, "chatml")
        return prepare(label, named, template, options, (), tmp_path / "cache", 0, streaming)

    return make_one


def test_a_part_is_tokenised_and_loaded(make: Any) -> None:
    """4 rows, of which `max_rows` takes 3; built again, nothing changes."""
    part = make([CHAT] * 4, max_rows=3)
    part.build(None)
    before = part.folder.stat().st_mtime_ns
    part.build(None)
    examples, report = part.load(0.1)
    assert (len(examples), report.rows, report.kept) == (3, 3, 3)
    assert part.folder.stat().st_mtime_ns == before


def test_what_is_not_tokenised_is_not_loaded(make: Any) -> None:
    with pytest.raises(ValueError, match=r"split train is not tokenized yet: call prepare_data\(\) before setup\(\)"):
        make([CHAT]).load(0.1)


def test_too_many_bad_rows_are_refused_at_each_start(make: Any) -> None:
    """1 of 4 is bad: a share of 0.25. At 0.1 it is refused, also from the cache; at 0.25 it is not."""
    part = make([CHAT, CHAT, CHAT, {"messages": []}])
    part.build(None)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of 4 rows of split train can't be used"):
            part.load(0.1)
    assert len(part.load(0.25)[0]) == 3


def test_the_format_is_said_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        part = make([{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}])
        part.build(None)
        part.load(0.1)
    said = "train: ShareGPT: `conversations` (from/value or role/content); roles human -> user, gpt -> assistant"
    assert caplog.text.count(said) == 1


def test_a_format_that_does_not_fit_names_the_split(make: Any) -> None:
    with pytest.raises(ValueError, match=r"split all of .*mine\.jsonl has the columns words"):
        make([{"words": "none"}])


# case: data-12
@pytest.mark.parametrize("streaming", [False, True])
def test_finding_a_part_tokenises_nothing(make: Any, tmp_path: Path, streaming: bool) -> None:
    make([CHAT], streaming=streaming)
    assert not (tmp_path / "cache").exists()


def test_the_splits_that_a_command_does_not_need_are_left_alone(tmp_path: Path) -> None:
    """`validate` does not tokenise the training split: here there is none."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "held.jsonl", [CHAT])
    module = ChatDataModule(
        str(tmp_path / "data"),
        train_split="train",
        val_split="held",
        tokenizer_name=str(TINY),
        chat_template="chatml",
        cache_dir=str(tmp_path / "cache"),
    )
    with pytest.raises(ValueError, match="train"):
        module.prepare_data()
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    module.trainer = trainer  # type: ignore[assignment]
    module.prepare_data()
    module.setup("validate")
    assert len(module.examples["val"]) == 1
