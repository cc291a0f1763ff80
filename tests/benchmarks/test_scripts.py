"""Every benchmark script runs: its help at once, and, slowly, a small measurement on a tiny model."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS, Script

SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'"
)
TWO_STEPS = ["--examples_per_step", "2", "--steps", "1", "--max_length", "36", "--learning_rate", "1e-3"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_describes_the_script(
    script: Script, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script imports what it uses, and its first line is the description."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    module = script(name)
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
    assert (module.__doc__ or "").split()[0] in capsys.readouterr().out


# promise: estimate
@pytest.mark.slow
def test_estimate_check_is_near_the_measured_peak(script: Script) -> None:
    """Nearly all of a tiny process is libraries."""
    words = ["--settings", "plain", "--max_length", "64", "--steps", "1", "--rows", "8", "--device", "cpu"]
    [result] = script("estimate_check").main(words)
    assert result.ratio == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_growth_draws_its_pictures(script: Script, tmp_path: Path) -> None:
    """The head's memory is its formula and little else, time is fitted, and plots.py draws the file."""
    found = tmp_path / "growth.json"
    sizes = ["--tokens", "8", "16", "--vocabularies", "4096", "8192", "--head_tokens", "256", "--chunk_sizes", "128"]
    parts = ["--parts", "tokens", "vocabulary", "start", "chunk", "--heads", "token_logps", "summed_logps"]
    assert script("growth").main([*sizes, *parts, "--json", str(found)]) == 0
    written = json.loads(found.read_text())
    assert not written["failed"] and len(written["tokens"]["seconds"]) == 2
    assert all(0 <= cell["rest"] < 12e6 for cell in written["vocabulary"]["cells"])
    assert script("plots").main([str(found), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_switches_agree_with_the_plain_path(script: Script, tmp_path: Path, task: str) -> None:
    """One step with other batches, packing and kernels has the same loss and gradient norm, to 1e-5."""
    file = tmp_path / "found.json"
    only = ["documents", "packing, documents", "4 micro-batches", "fused"] + ["precomputed"] * (task == "dpo")
    assert script("switches").main(["--task", task, "--max_length", "1024", "--json", str(file), "--only", *only]) == 0
    found = json.loads(file.read_text())["switches"]
    assert set(found) == {"plain", *only}
    assert [found[name]["micro_batches"] for name in ("plain", "4 micro-batches")] == [1, 4]
    assert found["fused"]["weights_difference"] < 1e-6


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_comparison_sees_the_same_rows_and_losses(
    script: Script, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    """smollit and TRL agree after the weights have changed, so gradients, clipping and optimizer do too."""
    contenders = ["--contenders", "smollit", "trl", "floor", "--floor_size", "64"]
    assert script("compare_trl").main(["--task", task, *TWO_STEPS, *contenders, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = answer["contenders"]
    assert found["smollit"]["tokens"] == found["trl"]["tokens"]
    assert answer["losses"]["agree"] and found["smollit"]["note"] is None
    ratio = found["smollit"]["tokens_per_s"] / found["trl"]["tokens_per_s"]
    assert answer["ratios"]["tokens_per_s"] == pytest.approx(ratio)


@needs_trl
@pytest.mark.slow
def test_tokenising_prepares_all_rows(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """5 and 50 chats in each tool, then 7 twice with one cache: the second time they are in it."""
    words = ["--tasks", "sft", "--rows", "5", "--second_start_rows", "7", "--max_length", "64", "--json"]
    assert script("tokenising").main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"]["sft"]
    assert found["rows"] == 5 and found["second_start"]["rows"] == 7
    assert found["trl"]["10x"]["rows_per_s"] == pytest.approx(50 / found["trl"]["10x"]["seconds"])


@pytest.mark.parametrize("name", ["compare_trl", "tokenising", "trl_parity"])
def test_without_trl_a_script_names_the_extra(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """`None` in sys.modules is Python's own mark of a module that can't be imported."""
    main = script(name).main
    monkeypatch.setitem(sys.modules, "trl", None)
    assert main([]) == 2
    assert "pip install -e '.[trl]'" in capsys.readouterr().err


def test_products_of_a_step_are_those_that_torch_counts(script: Script, tiny_model: Path) -> None:
    """The floor of the comparison: torch counts a forward pass of 12 tokens with the whole square of attention, 144
    pairs of positions, of which 78 are needed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    floor, record = script("compare.floor"), script("compare.record")
    size = floor.model_size(str(tiny_model))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")  # fused kernels go uncounted
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(12)[None], use_cache=False)
    row = record.RowSize(prompt=0, responses=[12], loss_tokens=12)
    assert floor.forward_flops(size, row) == counter.get_total_flops() - 4 * size.attention * (144 - 78)


@pytest.mark.slow
def test_lora_is_compared_with_all_weights(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4 steps of each: the same loss at step 0, where LoRA adds nothing yet; afterwards all differ, and all learn."""
    words = ["--steps", "4", "--rows", "2", "--val-rows", "4", "--max-length", "128", "--learning-rate", "1e-3"]
    assert script("adapters").main([*words, "--json", str(tmp_path / "a.json"), "--out", str(tmp_path / "a.png")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert [each["name"] for each in found] == ["all weights, 0.001", "LoRA, 0.001", "LoRA, 0.01"]
    first, last = ([each["val_loss"][step] for each in found] for step in ("0", "4"))
    assert first == pytest.approx([first[0]] * 3) and len(set(last)) == 3
    assert all(after < before for before, after in zip(first, last, strict=True))
    assert capsys.readouterr().out.count("\n") == 5 and (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.slow
def test_selection_compares_each_score_with_random_rows(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tables: all rows, as many at random, and each score, with two numbers each."""
    assert script("selection").main(["--seeds", "1", "--steps", "1"]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    numbers = {first.strip("| "): rest for first, *rest in lines if "---" not in first and " on" not in first}
    assert {"108 at random", "108 by `ifd`", "108 by `reference_margin`"} <= set(numbers)
    assert all(0 < float(number.strip("| ")) < 20 for rest in numbers.values() for number in rest)
