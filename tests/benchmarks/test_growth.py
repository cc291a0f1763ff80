"""growth.py and plots.py: their arithmetic, and each measurement on a tiny model."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _path() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def growth(_path: None) -> ModuleType:
    return importlib.import_module("growth")


@pytest.fixture(scope="module")
def grow(_path: None) -> ModuleType:
    return importlib.import_module("compare.grow")


@pytest.fixture(scope="module")
def plots(_path: None) -> ModuleType:
    return importlib.import_module("plots")


@pytest.mark.parametrize("tokens", [256, 512, 1024, 2048, 4096])
def test_documents_make_up_the_tokens(grow: ModuleType, tokens: int) -> None:
    """256 each, so that attention, which grows with the square of a document, is the same share everywhere."""
    assert grow.document_lengths(tokens) == [256] * (tokens // 256)
    assert sum(grow.document_lengths(tokens + 100)) == tokens + 100


def test_a_batch_has_the_positions_that_are_asked_for(grow: ModuleType) -> None:
    """3 and 4 positions: 7 targets, and one position of padding in a 2 x 4 batch."""
    batch = grow.make_batch([3, 4], num_words=9)
    assert batch.num_tokens == batch.num_loss_tokens == 7
    assert batch.input_ids.shape == (2, 4)


def test_the_line_is_least_squares(growth: ModuleType) -> None:
    """x 0 1 2, y 1 2 6: means 1 and 3; slope (2 + 0 + 3) / 2 = 2.5; start 0.5; line 0.5, 3, 5.5.

    Off by 0.5 of 0.5, 1 of 3, 0.5 of 5.5: at most 1.
    """
    found = growth.line([0, 1, 2], [1.0, 2.0, 6.0])
    assert (found["slope"], found["start"]) == (2.5, 0.5)
    assert found["fitted"] == [0.5, 3.0, 5.5]
    assert found["largest_deviation"] == 1


def test_the_line_leaves_nothing_of_a_straight_line(growth: ModuleType) -> None:
    """y = 3 + 2 x."""
    found = growth.line([1, 5, 9], [5.0, 13.0, 21.0])
    assert (found["slope"], found["start"], found["largest_deviation"]) == (2, 3, 0)


def test_the_heads_memory_is_gradients_and_chunks(growth: ModuleType) -> None:
    """8 tokens, hidden 2, 10 words: gradients of 8 x 2 x 4 = 64 and 10 x 2 x 4 = 80 bytes; pieces of 4 tokens (of at
    most 4, or of at most 7) have logits of 4 x 10 x 4 = 160, twice: 464. One piece of all 8: 144 + 2 x 320 = 784.
    """
    assert growth.expected_head_memory(8, 2, 10, 4) == 464
    assert growth.expected_head_memory(8, 2, 10, 7) == 464
    assert growth.expected_head_memory(8, 2, 10, 99) == 784


def test_a_part_lasts_from_the_end_of_the_one_before(growth: ModuleType) -> None:
    """From 10: import until 13, arguments until 13.5, data until 14, model until 16, step until 20."""
    found = growth.parts_between([10.0, 13.0, 13.5, 14.0, 16.0, 20.0])
    assert found == {"import": 3.0, "arguments": 0.5, "data": 0.5, "model": 2.0, "step": 4.0}


def test_repeated_rows_are_all_different(growth: ModuleType, tmp_path: Path) -> None:
    """There are fewer sample rows than 300."""
    lines = growth.write_rows(300, tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 300
    texts = {json.loads(line)["messages"][-1]["content"] for line in lines}
    assert len(texts) < 300


def test_seconds_are_measured_at_each_number_of_tokens(grow: ModuleType, tiny_model: Path) -> None:
    """Three times each."""
    found = grow.time_tokens({"model": str(tiny_model), "tokens": [8, 16]})["seconds"]
    assert {tokens: len(seconds) for tokens, seconds in found.items()} == {8: 3, 16: 3}
    assert all(second > 0 for seconds in found.values() for second in seconds)


def test_rows_are_prepared_and_dealt_out(
    grow: ModuleType, growth: ModuleType, tiny_model: Path, tmp_path: Path
) -> None:
    """One epoch has each of the 20 rows once."""
    file = growth.write_rows(20, tmp_path / "rows.jsonl")
    job = {"file": str(file), "tokenizer": str(tiny_model), "cache": str(tmp_path / "cache")}
    found = grow.measure_rows(job)
    assert found["rows"] == 20
    assert found["peak_memory"] > 0


def test_memory_of_the_head_is_what_it_must_be(growth: ModuleType) -> None:
    """In a process of its own. A chunk of 256 tokens x 16,384 words x 4 B = 16.8 MB, twice: 34 MB.

    The gradient of the weight: 16,384 x 32 x 4 B = 2 MB. Whole logits would be 4 x 134 MB.
    """
    found = growth.head_memory(tokens=2048, hidden=32, vocabulary=16384, chunk_size=256)
    assert 2 * 16.77e6 < found["memory"] < 2 * 16.78e6 + 10e6
    assert found["memory"] == found["expected"] + found["rest"]
    assert found["whole_logits"] == 2048 * 16384 * 4


def test_the_first_step_is_made_by_the_command_line(growth: ModuleType, tiny_model: Path, tmp_path: Path) -> None:
    """A real `fit` in a process of its own; each part takes time."""
    found = growth.first_step({"arguments": growth.fit_arguments(str(tiny_model), tmp_path)})
    assert list(found) == ["import", "arguments", "data", "model", "step"]
    assert all(seconds > 0 for seconds in found.values())


def test_a_part_that_fails_is_named(growth: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """The others still run."""

    def fail(module: str, job: dict[str, Any], **environment: str) -> dict[str, Any]:
        if job["measure"] == "tokens":
            raise RuntimeError("no memory")
        return {"seconds": [1.0], "memory": 1}

    monkeypatch.setattr(growth.child, "start", fail)
    options = growth.parse(["--model", str(tiny_model), "--parts", "tokens", "chunk"])
    found = growth.measure(options, Path())
    assert found["failed"] == {"tokens": "no memory"}
    assert [cell["chunk_size"] for cell in found["chunk"]["cells"]] == [128, 256, 512, 1024, 2048, 0]
    assert "FAILED: tokens: no memory" in growth.table(found)


def test_the_floors_speed_is_smollits_over_its_share(plots: ModuleType) -> None:
    """60 tokens/s with 3/4 of the time in products: 80 if there were nothing else."""
    contender = {"tokens_per_s": 60.0, "floor": {"share": 0.75}}
    assert plots.floor_speed({"smollit": contender}) == {"floor": 80}
    assert plots.floor_speed({"trl": contender}) == {}


def test_a_comparison_gives_two_pictures(plots: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a file that neither script wrote is named."""
    contender = {"tokens_per_s": 60.0, "peak_memory": 1e9, "losses": [1.0, 2.0], "floor": {"share": 0.75}}
    found = {
        "task": "sft", "model": "m", "examples_per_step": 4, "max_length": 8, "precision": "32-true", "device": "d",
        "contenders": {"smollit": contender, "trl": contender}, "losses": None,
    }  # fmt: skip
    (tmp_path / "sft.json").write_text(json.dumps(found))
    (tmp_path / "other.json").write_text("{}")
    assert plots.main([str(tmp_path / "sft.json"), str(tmp_path / "other.json"), "--out", str(tmp_path)]) == 1
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["sft_losses.png", "sft_speed.png"]
    assert "other.json: holds no results" in capsys.readouterr().err


def test_parts_that_can_be_measured_have_a_panel(plots: ModuleType) -> None:
    """All five, in one figure."""
    cells = [{"rows": 1, "peak_memory": 2, "peak_own_memory": 1}, {"rows": 10, "peak_memory": 2, "peak_own_memory": 1}]
    head = {"chunk_size": 256, "vocabulary": 8, "memory": 3, "rest": 1, "whole_logits": 9}
    found = {
        "growth": True, "model": "m", "device": "d", "threads": 1,
        "tokens": {"tokens": [1, 2], "seconds": [1, 2], "fitted": [1, 2], "largest_deviation": 0},
        "vocabulary": {"tokens": 4, "cells": [head]},
        "rows": {"cells": cells},
        "start": {"help_seconds": 1, "first_step_seconds": dict.fromkeys(("a", "b", "c", "d", "e"), 1.0)},
        "chunk": {"tokens": 4, "vocabulary": 8, "cells": [{"chunk_size": 0, "seconds": 1, "memory": 1}]},
    }  # fmt: skip
    titles = [axes.get_title(loc="left") for axes in plots.plot_growth(found).axes]
    assert sum(bool(title) for title in titles) == 5


@pytest.mark.parametrize(("size", "millions"), [("135M", 134.515), ("1.7B", 1711.376)])
def test_random_models_have_smollm2s_numbers_of_parameters(size: str, millions: float) -> None:
    """134,515,008 are SmolLM2-135M's.

    1.7B: words 49152 x 2048, 24 layers x (attention 4 x 2048^2 + MLP 3 x 2048 x 8192 + norms 2 x 2048), norm 2048.
    """
    config = importlib.import_module("compare.random_model").make_config(size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(millions * 1e6, abs=1e3)


def test_utilisation_is_the_floors_share() -> None:
    """A quarter of 8 TFLOP/s is 2."""
    lines = importlib.import_module("compare.utilisation").lines
    contender = {"tokens_per_s": 1000.0, "peak_memory": 2e9, "floor": {"share": 0.25}}
    [line] = lines("sft-135M", {"floor": {"flops_per_s": 8e12}, "contenders": {"smollit": contender}})
    assert "25.0%" in line and "= 2.0 TFLOP/s" in line
    assert lines("x", {"floor": None}) == ["x: no floor was measured"]
