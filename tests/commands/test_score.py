"""`score`: each number by another route, and what its intervals say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollit.commands.score.interval import rows_of
from smollit.commands.score.responses import gsm8k, ifeval, last_number, read_rows, rows_at_once
from smollit.main import main
from smollit.models import CausalLM
from tests.conftest import SAMPLES, edited


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after some training, as far as its weights tell."""
    folder = edited(tiny_model, tmp_path_factory.mktemp("score") / "other")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


# promise: score
@pytest.mark.slow
def test_loss_and_preferences_equal_those_of_validate(
    make_run: Any,
    tiny_model: Path,
    other: Path,
    cache_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """`validate` over the same 6 chats, and of DPO with the first model as reference: loss and rewards/accuracies."""
    monkeypatch.setenv("SMOLLIT_CACHE", str(cache_dir))
    sets = [f"--chats={SAMPLES / 'ultrachat'}:test_sft", f"--pairs={SAMPLES / 'ultrafeedback'}:test_prefs"]
    main(
        [
            "score",
            str(tiny_model),
            str(other),
            *sets,
            "--max_rows=6",
            "--max_length=128",
            "--json",
            f"--html={tmp_path / 'score.html'}",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    sft = make_run([], model={"model_name": str(other)}, data={"val_split": "test_sft[:6]", "max_length": 128})
    names = {"model_name": str(other), "reference_name": str(tiny_model)}
    dpo = make_run([], "dpo", names, data={"val_split": "test_prefs[:6]", "max_length": 128}, folder="dpo")
    expected = [run.trainer.validate(run.module, datamodule=run.data, verbose=False)[0] for run in (sft, dpo)]
    chats, pairs = "ultrachat:test_sft", "ultrafeedback:test_prefs"
    loss, accuracy = found[f"loss/{chats}"][str(other)], found[f"preferences/{pairs}"][str(other)]
    assert loss[0] == pytest.approx(expected[0]["val/loss"], abs=1e-5)
    assert found[f"perplexity/{chats}"][str(other)][0] == pytest.approx(math.exp(loss[0]))
    assert accuracy[0] == pytest.approx(expected[1]["val/rewards/accuracies"])
    first = found[f"preferences/{pairs}"][str(tiny_model)]
    assert first == [0.5, 0.5, 0.5]  # a model is its own reference: ties
    page = (tmp_path / "score.html").read_text()
    assert f"{loss[0]:.4f}" in page and f"preferences/{pairs}" in page
    for columns in found.values():
        assert all(low <= value <= high for value, low, high in columns.values())


def test_intervals_are_those_of_the_normal_approximation() -> None:
    """p = 0.3 of 400 rows: 0.3 +- 1.96 sqrt(0.3 * 0.7 / 400) = 0.3 +- 0.045; a model against itself changes by 0."""
    rows = rows_of([(float(row % 10 < 3), 1.0) for row in range(400)])
    found = rows.interval()
    half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert found.value == pytest.approx(0.3)
    np.testing.assert_allclose([found.low, found.high], [0.3 - half, 0.3 + half], atol=0.008)
    assert rows.change(rows) == (0, 0, 0)
    # One row in ten gets better: the difference is 0.1, and rows that stay the same add nothing to its spread.
    better = rows_of([(float(row % 10 < 4), 1.0) for row in range(400)])
    change = better.change(rows)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 400)
    np.testing.assert_allclose(change, [0.1, 0.1 - half, 0.1 + half], atol=0.008)


def test_gsm8k_compares_the_last_numbers() -> None:
    """Commas, decimals and signs; a response without a number is wrong."""
    rows = [{"answer": "16 - 3 = 13\n#### 1,300"}, {"answer": "#### -2"}, {"answer": "#### 5"}, {"answer": "#### 5"}]
    said = ["It is 1300.00 dollars", "so -2.", "I don't know", "5 or 6"]
    assert gsm8k(rows, said)["gsm8k"].sums.tolist() == [1, 1, 0, 0]
    assert (last_number("-1,234.5 x"), last_number("none")) == (-1234.5, None)


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    """U+2028 and U+0085 stand inside of texts; empty lines are no rows; rows after `max_rows` are not even parsed."""
    rows = [{"question": "a\u2028b\x85c"}, {"question": "d"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "rows.jsonl").write_text(f"{lines[0]}\r\n\n{lines[1]}\n{{broken", encoding="utf-8")
    assert read_rows(tmp_path / "rows.jsonl", ["question"], max_rows=2) == rows


def test_as_many_responses_are_generated_together_as_memory_holds(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the free memory holds 3 sequences of 10 tokens, counted from a cache of transformers: 3 at once. It holds
    none: 1. It holds very many: 128. It is unknown: 32."""
    model = CausalLM(str(tiny_model))
    cache = model.model(torch.arange(10)[None], use_cache=True).past_key_values
    size = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    expected = {6 * size: 3, 6 * size + 1: 3, 8 * size - 2: 3, 0: 1, 2**60: 128, None: 32}
    for free, rows in expected.items():
        monkeypatch.setattr("smollit.commands.score.responses.free_bytes", lambda device, free=free: free)
        assert rows_at_once(model, 10) == rows


@pytest.mark.slow
def test_ifeval_uses_the_verifiers_of_lm_eval() -> None:
    """Of three instructions of two prompts, two are followed, and all of one prompt."""
    pytest.importorskip("lm_eval", reason="pip install 'smollit[score]'")
    rows = [
        {"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {
            "prompt": "q",
            "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
            "kwargs": [{}, {"num_words": None}],
        },
    ]
    found = ifeval(rows, ["no commas here", "none but not lower Case"])
    assert found["ifeval/instructions"].interval().value == pytest.approx(2 / 3)
    assert found["ifeval/prompts"].interval().value == pytest.approx(1 / 2)


@pytest.mark.slow
def test_tasks_of_lm_eval_are_scored_by_name_or_file(
    tiny_model: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Which of two choices has the higher log p, by transformers and torch; F1 is no mean over rows, and is named."""
    pytest.importorskip("lm_eval", reason="pip install 'smollit[score]'")
    rows = [{"question": f"What is {row} + 1?", "choices": ["one", "a cat"], "gold": row % 2} for row in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    main(["score", str(tiny_model), "--tasks", str(tmp_path / "mine.yaml"), "--max_rows=5", "--json"])
    found = json.loads(capsys.readouterr().out)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def logp(prompt: str, choice: str) -> float:
        ids = tokenizer(f"{prompt} {choice}", return_tensors="pt").input_ids
        start = len(tokenizer(prompt).input_ids)
        each = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        return each[start - 1 :].sum().item()

    best = [max((0, 1), key=lambda choice: logp(row["question"], row["choices"][choice])) for row in rows[:5]]
    hits = [float(choice == row["gold"]) for choice, row in zip(best, rows, strict=False)]
    assert list(found) == ["mine/acc"] and 0 < sum(hits) < 5
    assert found["mine/acc"][str(tiny_model)][0] == pytest.approx(sum(hits) / 5)
    assert "left out, since it is no mean over rows: mine/f1" in caplog.text
    main(["score", str(other), str(tiny_model), "--tasks", str(tmp_path / "mine.yaml"), "--max_rows=5", "--json"])
    both = json.loads(capsys.readouterr().out)["mine/acc"]  # the tasks are loaded once for two models
    assert both[str(tiny_model)] == found["mine/acc"][str(tiny_model)]
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"the data of lm_eval's task .*mine.yaml cannot be loaded"):
        main(["score", str(tiny_model), "--tasks", str(tmp_path / "mine.yaml")])


@pytest.mark.slow  # lm_eval reads its 14,000 files of tasks
def test_a_task_that_is_unknown_or_not_here_is_a_sentence(tiny_model: Path) -> None:
    """A name with a typo, and data of the Hub without a network."""
    pytest.importorskip("lm_eval", reason="pip install 'smollit[score]'")
    for name, sentence in (
        ("helaswag", "lm_eval has no task helaswag"),
        ("hellaswag", "cannot be loaded: .*hellaswag"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(["score", str(tiny_model), "--tasks", name])


TASK = """task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: f1
    aggregation: f1
"""


def test_what_can_not_be_scored_is_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    """Nothing to measure, no reference, a file that is missing, that is empty, and that is of another kind."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "2?"}\n')
    (tmp_path / "empty.jsonl").touch()
    for words, sentence in (
        ([], "needs something to measure"),
        (["--pairs", "x"], "needs a reference"),
        (["--gsm8k", "no/file.jsonl"], "is not a file"),
        (["--gsm8k", "x", "--apply_chat_template=true"], "is about `--tasks`"),
        (["--gsm8k", "x", "--batch_size=0"], "`batch_size` must be at least 1, got 0"),
        ([str(tiny_model), "--gsm8k", "x"], "one model, or two that differ"),
        (["--gsm8k", str(tmp_path / "empty.jsonl")], "has no rows: `score` needs JSON Lines with `question`, `answer`"),
        (["--gsm8k", str(tmp_path / "rows.jsonl")], "row 1 of .* has no `answer`"),
        (["--ifeval", str(tmp_path / "rows.jsonl")], "row 0 .* with `prompt`, `instruction_id_list`, `kwargs`"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(["score", str(tiny_model), *words])
