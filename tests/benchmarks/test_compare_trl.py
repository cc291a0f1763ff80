"""The comparison with TRL: its arithmetic, its rows, and, where TRL is installed, all of it on a tiny model."""

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'"
)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; its helpers are in `sys.modules` as `compare.*`."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("compare_trl")
    sys.path.remove(str(BENCHMARKS))


def helper(name: str) -> ModuleType:
    return importlib.import_module(f"compare.{name}")


def plan(sizes: list[Any], **changes: Any) -> Any:
    """Two rows a step, one step of warm-up."""
    fixed: dict[str, Any] = {
        "task": "dpo", "model": "", "rows": "", "sizes": sizes, "max_length": 8, "examples_per_step": 2,
        "steps": len(sizes) // 2 - 1, "warmup": 1, "precision": "32-true", "device": "cpu", "seed": 0,
        "learning_rate": 1.0, "gradient_checkpointing": False, "trl_compile": False, "floor_size": 8,
    }  # fmt: skip
    return helper("record").Plan(**fixed | changes)


def result(seconds: list[float], tokens: list[int], **changes: Any) -> dict[str, Any]:
    """What a contender may say."""
    fixed = {
        "seconds": seconds, "tokens": tokens, "examples": [2] * len(tokens), "losses": [1.0] * len(tokens),
        "peak_memory": 100, "memory_before_training": 10, "precompute_seconds": 0.0, "reference_in_step": True,
    }  # fmt: skip
    return fixed | changes


def test_a_pairs_real_tokens_count_its_prompt_with_each_answer(script: ModuleType) -> None:
    """3 + 5 and 3 + 2 tokens: 13, though smollit computes the prompt once; a chat of 7 tokens has 7."""
    size = helper("record").RowSize
    assert size(prompt=3, answers=[5, 2], trained=7).tokens == 13
    assert size(prompt=0, answers=[7], trained=2).tokens == 7


def test_a_plan_is_read_as_it_was_written(script: ModuleType, tmp_path: Path) -> None:
    """It reaches a contender's process as JSON."""
    written = plan([helper("record").RowSize(1, [2, 3], 5)] * 4)
    assert helper("record").load_plan(written.save(tmp_path / "plan.json")) == written


def test_speeds_come_from_totals_without_the_warm_up(script: ModuleType) -> None:
    """Steps of 1 s and 3 s with 10 and 50 tokens: 60 / 4 = 15 a second, not the mean of 10 and 16.7.

    The warm-up (9 s, 1000 tokens) is left out. 6 s of the reference's scores are for 3 steps, so the two measured
    steps owe 4 of them: 60 / (4 + 4) = 7.5.
    """
    found = helper("table").summarise(result([9.0, 1.0, 3.0], [1000, 10, 50], precompute_seconds=6.0), warmup=1)
    assert found["tokens_per_s"] == 15
    assert found["examples_per_s"] == 1
    assert found["step_seconds_median"] == found["step_seconds_mean"] == 2
    assert found["tokens_per_s_with_precompute"] == 7.5


def test_ratios_are_smollit_over_trl(script: ModuleType) -> None:
    """Twice the tokens in the same second, and half of the memory: 2 and 0.5; nothing to divide gives null."""
    sizes = [helper("record").RowSize(0, [20], 5)] * 4
    said = {
        "smollit": result([9.0, 1.0], [40, 40], peak_memory=50),
        "trl": result([9.0, 2.0], [40, 40], peak_memory=100),
        "floor": {"flops_per_s": 10.0, "flops": 4, "flops_with_reference": 5},
    }
    answer = helper("table").assemble(plan(sizes), said)
    assert answer["ratios"] == {"tokens_per_s": 2, "examples_per_s": 2, "peak_memory": 0.5}
    assert answer["ratios_tuned"] is None
    assert answer["contenders"]["smollit"]["floor"] == {"seconds": 0.5, "share": 0.5}
    assert answer["contenders"]["trl"]["floor"] == {"seconds": 0.5, "share": 0.25}
    assert answer["contenders"]["smollit"]["note"] is None


def test_a_contender_that_saw_other_rows_is_noted(script: ModuleType) -> None:
    """4 rows of 20 tokens are 80, and 79 were seen."""
    sizes = [helper("record").RowSize(0, [20], 5)] * 4
    answer = helper("table").assemble(plan(sizes), {"trl": result([1.0, 1.0], [40, 39])})
    assert "79" in answer["contenders"]["trl"]["note"]
    assert any("79" in line for line in helper("table").table(answer))


@pytest.mark.parametrize(("loss", "agree"), [(2.001, True), (2.003, False)])
def test_losses_agree_within_a_thousandth(script: ModuleType, loss: float, agree: bool) -> None:
    """0.001 / 2.001 = 5e-4 and 0.003 / 2.003 = 1.5e-3; the first step's losses are equal."""
    found = helper("table").compare_losses({"losses": [1.0, loss]}, {"losses": [1.0, 2.0]}, 1e-3)
    assert found["agree"] is agree
    assert found["largest_difference"] == pytest.approx((loss - 2) / loss)


def test_products_are_those_that_torch_counts(script: ModuleType, tiny_model: Path) -> None:
    """torch counts a forward of 12 tokens, with the whole square of attention: 144 pairs, of which 78 are needed."""
    from transformers import AutoModelForCausalLM

    floor = helper("floor")
    size = floor.model_size(str(tiny_model))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")  # fused kernels go uncounted
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(12)[None], use_cache=False)
    row = helper("record").RowSize(prompt=0, answers=[12], trained=12)
    assert floor.forward_flops(size, row) == counter.get_total_flops() - 4 * size.attention * (144 - 78)


def test_a_pairs_prompt_is_computed_once(script: ModuleType) -> None:
    """3 prompt tokens and answers of 2 and 1: 6 tokens; the prompt sees 6 pairs, the answers 2 x 3 + 3 and 3 + 1.

    With 10 weights in the body, 7 in the head and a width of 5: 2 x 10 x 6 + 4 x 5 x 19 + 2 x 7 x 3 = 542. Training
    takes three times that, and the reference once more. Inside attention are 380 of them, beside 162.
    """
    floor, row = helper("floor"), helper("record").RowSize(prompt=3, answers=[2, 1], trained=3)
    size = floor.ModelSize(body=10, head=7, attention=5)
    assert floor.forward_flops(size, row) == 542
    assert floor.step_flops(size, [row, row], reference=False) == 6 * 542
    assert floor.step_flops(size, [row, row], reference=True) == 8 * 542
    assert floor.attention_share(size, [row, row]) == pytest.approx(380 / 162)


def test_tuned_trl_gets_the_measured_rows_by_length(script: ModuleType) -> None:
    """Rows 0 and 1 are the warm-up; of the others the longest sequence, prompt + longer answer, is 9, 12, 4, 6."""
    row = helper("record").RowSize
    sizes = [
        row(0, [1], 1),
        row(0, [9], 1),
        row(4, [5, 1], 6),
        row(2, [3, 10], 13),
        row(1, [2, 3], 5),
        row(5, [1, 1], 2),
    ]
    assert helper("trl_side").order(plan(sizes), tuned=False) == [0, 1, 2, 3, 4, 5]
    assert helper("trl_side").order(plan(sizes), tuned=True) == [0, 1, 3, 2, 5, 4]


def test_trls_real_tokens_are_those_of_its_mask_or_of_its_positions(script: ModuleType) -> None:
    """Rows of 3 and 2 tokens, padded to 3: 5 tokens in 2 rows; the same without padding, in one row."""
    mask, positions = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([[0, 1, 2, 0, 1]])
    count = helper("trl_side").count
    assert [int(value) for value in count({"attention_mask": mask, "input_ids": mask})] == [5, 2]
    assert [int(value) for value in count({"position_ids": positions, "input_ids": positions})] == [5, 2]


def test_a_profile_is_split_in_three(script: ModuleType) -> None:
    """5 + 1 of 10 in products, 3 in attention, 1 in all else; a name that only begins like a product is no product.
    Products inside attention, a fifth of the others: 0.2 x 0.6. They are never more than attention itself."""
    times = {"aten::mm": 5, "aten::bmm": 1, "aten::_scaled_dot_product_flash_attention_for_cpu": 3, "aten::mmul": 1}
    parts = {"matrix_products": 0.6, "attention": 0.3, "other": 0.1}
    shares = helper("smollit_side").shares
    assert shares(times, 0.2) == pytest.approx(parts | {"products_in_attention": 0.12})
    assert shares(times, 2.0) == pytest.approx(parts | {"products_in_attention": 0.3})


def test_a_process_that_dies_is_named_and_the_others_go_on(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """-9 is what the kernel does to a process that takes too much memory: no ratio, and exit code 1."""
    sizes = [helper("record").RowSize(0, [20], 5)] * 4
    found = helper("rows").Selection([], sizes, 4, 4, 0)
    monkeypatch.setattr(script, "find_spec", lambda name: object())
    monkeypatch.setattr(script, "describe", lambda plan, found: {})
    monkeypatch.setattr(script, "say", lambda about: None)
    monkeypatch.setattr(script, "make_plan", lambda options, folder: (plan(sizes), found))

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        died = "trl" in command
        said = script.MARK + json.dumps(result([1.0, 1.0], [40, 40]))
        return subprocess.CompletedProcess(command, -9 if died else 0, "" if died else said, "")

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main(["--contenders", "trl", "smollit", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "out of memory" in answer["failed"]["trl"]
    assert answer["ratios"] is None
    assert answer["contenders"]["smollit"]["tokens_per_s"] == 40


def test_without_trl_it_says_what_to_install(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL is an extra of its own."""
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert script.main([]) == 2
    assert "pip install -e '.[trl]'" in capsys.readouterr().err


def test_only_rows_that_both_tokenise_alike_are_chosen(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """Row 1 is said to differ: left out, and counted. There are 3 others, so 4 can't be had."""
    data = tmp_path / "data"
    data.mkdir()
    chats = [
        [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "Answer."}]
        for number in range(4)
    ]
    (data / "train_sft.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    rows = helper("rows")
    measure = rows.measure_chat
    monkeypatch.setattr(rows, "measure_chat", lambda *args: None if "1" in str(args[1]) else measure(*args))
    options = ("sft", data, "train_sft", str(tiny_model), 2, 64, tmp_path)
    found = rows.select_rows(*options)
    assert [row["messages"][0]["content"] for row in found.rows] == ["Question 0?", "Question 2?"]
    assert (found.num_usable, found.num_alike, found.num_cut) == (4, 3, 0)
    with pytest.raises(ValueError, match="4 are needed"):
        rows.select_rows(*options[:4], 4, 64, tmp_path / "again")


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def test_a_chat_with_other_tokens_or_other_targets_is_not_alike(script: ModuleType, tiny_tokenizer: Any) -> None:
    """The rendered text is cut by hand where the answer begins and ends. One token, or one trained place, is enough."""
    before = tiny_tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    ids = before + tiny_tokenizer("Hello.<|im_end|>")["input_ids"]
    size = helper("record").RowSize(prompt=0, answers=[len(ids)], trained=len(ids) - len(before))

    def measure(ids: list[int], spans: list[int], limit: int = 99) -> Any:
        example = {"input_ids": ids, "spans": spans}
        return helper("rows").measure_chat(tiny_tokenizer, {"messages": CHAT}, example, limit)

    assert measure(ids, [len(before), len(ids)]) == size
    assert measure([ids[0] + 1, *ids[1:]], [len(before), len(ids)]) is None
    assert measure(ids, [len(before) - 1, len(ids)]) is None
    cut = len(ids) - 1
    assert measure(ids[:cut], [len(before), cut], limit=cut).trained == size.trained - 1


def test_a_pair_with_another_token_is_not_alike(script: ModuleType, tiny_tokenizer: Any) -> None:
    """Prompt and answers are rendered by hand; the cut leaves 1 token of both answers."""
    prompt = tiny_tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    chosen, rejected = (tiny_tokenizer(f"{text}<|im_end|>")["input_ids"] for text in ("Hello.", "What?"))
    row = {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "What?"}]}

    def measure(prompt: list[int], chosen: list[int], rejected: list[int], limit: int = 99) -> Any:
        example = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        return helper("rows").measure_pair(tiny_tokenizer, row, example, limit)

    answers = [len(chosen), len(rejected)]
    assert measure(prompt, chosen, rejected) == helper("record").RowSize(len(prompt), answers, sum(answers))
    assert measure(prompt, chosen[:1], rejected[:1], len(prompt) + 1).tokens == 2 * len(prompt) + 2
    assert measure(prompt, rejected, chosen) is None
    assert measure([prompt[0] + 1, *prompt[1:]], chosen, rejected) is None


def test_a_folder_without_the_split_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_sft"):
        helper("rows").read_rows("sft", tmp_path, "train_sft", 4, tmp_path)


@needs_trl
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_both_tools_see_the_same_rows_and_lose_the_same(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    """All contenders on the tiny model and the sample rows, in this process: two steps of two rows behind a warm-up.

    Losses agree after weights have changed, so gradients, clipping and optimizer do too. Each contender sees all
    tokens of the rows; TRL's own count, by its masks, is smollit's by the plan.
    """

    def in_process(contender: str, file: Path, profiled: bool = False) -> Any:
        plan = helper("record").load_plan(file)
        return json.loads(json.dumps(helper("contender").run_contender(contender, plan, profiled)))

    monkeypatch.setattr(script, "start_contender", in_process)
    monkeypatch.setattr(helper("floor"), "SECONDS", 0.0)
    options = ["--examples_per_step", "2", "--steps", "2", "--max_length", "36", "--learning_rate", "1e-3"]
    options += ["--contenders", "smollit", "smollit-tuned", "trl", "trl-tuned", "floor", "--floor_size", "64"]
    assert script.main(["--task", task, *options, "--profile", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = answer["contenders"]
    assert found["smollit"]["tokens"] == found["trl"]["tokens"]
    assert found["trl"]["examples"] == found["smollit"]["examples"] == [2, 2, 2]
    assert sum(found["trl-tuned"]["tokens"]) == sum(found["trl"]["tokens"])
    assert all(each["note"] is None for each in found.values())
    assert answer["losses"]["agree"]
    assert abs(found["trl"]["losses"][-1] - found["trl"]["losses"][0]) > 1e-3
    assert answer["rows"]["cut"] > 0
    assert answer["ratios"]["tokens_per_s"] == pytest.approx(
        found["smollit"]["tokens_per_s"] / found["trl"]["tokens_per_s"]
    )
    assert set(answer["ratios_tuned"]) == {"tokens_per_s", "examples_per_s", "peak_memory"}
    assert found["trl"]["reference_in_step"] is (task == "dpo")
    for name in ("smollit-tuned", "trl-tuned"):
        assert (found[name]["precompute_seconds"] > 0) is (task == "dpo")
        assert found[name]["reference_in_step"] is False
    profile = answer["profile"]
    assert sum(profile[part] for part in ("matrix_products", "attention", "other")) == pytest.approx(1)
    assert 0 < profile["products_in_attention"] <= profile["attention"]


def test_a_contender_runs_in_its_own_process(script: ModuleType, tiny_model: Path, tmp_path: Path) -> None:
    """The floor needs neither tool: a plan goes in, one line comes back."""
    rows = [helper("record").RowSize(0, [4], 2)] * 4
    file = plan(rows, model=str(tiny_model), floor_size=16).save(tmp_path / "plan.json")
    found = script.start_contender("floor", file)
    size = helper("floor").model_size(str(tiny_model))
    assert found["flops"] == 3 * 2 * helper("floor").forward_flops(size, rows[0])
    assert found["flops_per_s"] > 0
