"""Rows that a script holds in memory are rows like those of a file, and the tokenizer is the model's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from lightning.pytorch import Trainer

from smollit.data import ChatDataModule
from smollit.modules import SFTModule
from smollit.training import SmollitTrainer
from tests.conftest import QUIET
from tests.data.conftest import chats
from tests.data.sources.conftest import write


@pytest.mark.parametrize("trainer_class", [Trainer, SmollitTrainer])
def test_a_script_needs_no_file_and_no_tokenizer_name(
    trainer_class: type[Trainer], tiny_model: Path, tmp_path: Path
) -> None:
    """4 rows, 2 in a batch: 2 steps, on a list of dicts and the model's own tokenizer."""
    options: dict[str, Any] = {"val_split": None, "train_batch_size": 2, "max_length": 64}
    data = ChatDataModule(chats(4), cache_dir=str(tmp_path / "cache"), **options)
    trainer = trainer_class(default_root_dir=str(tmp_path / "run"), max_epochs=1, **QUIET)
    trainer.fit(SFTModule(str(tiny_model)), datamodule=data)
    assert trainer.global_step == 2
    assert data.tokenizer_name == str(tiny_model)


def test_all_forms_of_the_same_rows_give_the_same_tokens(tiny_model: Path, tmp_path: Path) -> None:
    """A path, a list, a Dataset, and the split of a DatasetDict; held-out rows come from the latter's other split."""
    rows = chats(4)
    forms: list[Any] = [Path(write(tmp_path / "rows.jsonl", rows)), rows, Dataset.from_list(rows)]
    forms.append(DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}))
    found = []
    for form in forms:
        data = ChatDataModule(form, val_split=None, tokenizer_name=str(tiny_model), cache_dir=str(tmp_path / "cache"))
        data.prepare_data()
        data.setup("fit")
        found.append([data.examples["train"][index]["input_ids"] for index in range(4)])
    assert found[1:] == [found[0]] * 3


def test_a_text_that_is_no_unicode_is_a_counted_bad_row(tiny_model: Path, tmp_path: Path) -> None:
    """As in a file: the row is dropped with the reason, and the others train."""
    rows = chats(4)
    rows[1]["messages"][0]["content"] = "a\ud800b"
    options: dict[str, Any] = {"max_dropped_share": 0.5, "cache_dir": str(tmp_path / "cache")}
    data = ChatDataModule(rows, val_split=None, tokenizer_name=str(tiny_model), **options)
    data.prepare_data()
    data.setup("fit")
    assert len(data.examples["train"]) == 3
    assert sum(data.reports["train"].dropped.values()) == 1


def test_what_is_neither_is_a_sentence(tmp_path: Path) -> None:
    """A number, a list of texts, and an empty list."""
    for wrong in (3, ["text"], []):
        with pytest.raises(ValueError, match=r"data\.dataset.*got a"):
            ChatDataModule(wrong, cache_dir=str(tmp_path))  # type: ignore[arg-type]


def test_parts_as_a_config_has_them(tiny_model: Path, tmp_path: Path) -> None:
    """Objects of settings, and the name of a file alone for a named set."""
    path = write(tmp_path / "rows.jsonl", chats(4))
    parts: Any = [{"dataset": str(path), "max_rows": 3, "weight": 2}]
    options: dict[str, Any] = {"tokenizer_name": str(tiny_model), "cache_dir": str(tmp_path / "cache")}
    data = ChatDataModule(
        parts, val_sets={"mine": path, "half": {"dataset": str(path), "split": "train[:50%]"}}, **options
    )
    data.prepare_data()
    data.setup("fit")
    assert {key: len(rows) for key, rows in data.examples.items()} == {"train": 3, "val/mine": 4, "val/half": 2}
    assert data.sampler().num_rows() == 6


def test_numbers_of_numpy_and_torch_are_numbers(tiny_model: Path, tmp_path: Path) -> None:
    """Scores as NumPy and a torch format have them; an image is no text, and nobody decodes it."""
    rows = [row | {"score": np.float32(number), "pixels": b"x"} for number, row in enumerate(chats(3))]
    in_torch = Dataset.from_list(rows).with_format("torch")
    for form in (rows, in_torch):
        options: dict[str, Any] = {"val_split": None, "tokenizer_name": str(tiny_model), "where": "score > 0.5"}
        data = ChatDataModule(form, cache_dir=str(tmp_path / "cache"), **options)
        data.prepare_data()
        data.setup("fit")
        assert data.examples["train"].row_numbers() == [1, 2]
