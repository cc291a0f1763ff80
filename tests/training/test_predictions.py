"""WritePredictions: every row once, in order, with the model's prompt."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollit.data.template.template import load_template
from smollit.main import main
from smollit.models import CausalLM
from smollit.training.predictions import merge, response_text
from tests.conftest import edited


def predict(run: Any) -> list[dict[str, Any]]:
    run.trainer.predict(run.module, datamodule=run.data)
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


# promise: predict
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_responses_are_those_of_transformers(make_run: Any, kind: str) -> None:
    """4 rows in batches of 3 and 1; prompts by transformers' template, responses by its generate."""
    run = make_run([], kind, {"max_new_tokens": 6}, data={"val_batch_size": 3})
    found = predict(run)
    assert [entry["row"] for entry in found] == [0, 1, 2, 3]
    model, tokenizer = (auto.from_pretrained(run.module.model_name) for auto in (AutoModelForCausalLM, AutoTokenizer))
    for entry in found:
        ids = torch.tensor([tokenizer(entry["prompt"], add_special_tokens=False)["input_ids"]])
        output = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=[2, 0], pad_token_id=0)
        assert entry["answer"] == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert "<|im_start|>user\n" in entry["prompt"]
        assert entry["prompt"].endswith("<|im_start|>assistant\n")
    assert [path.name for path in run.folder.iterdir() if "predictions" in path.name] == ["predictions.jsonl"]


# promise: predict
@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_prediction_continues_after_its_last_row(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """Fails at the second batch of 2, in the middle of a line: the next start generates rows 2 and 3 alone, and the
    file equals that of an unbroken run. With another setting it begins anew. An earlier result stays until then."""
    expected = predict(make_run([], model={"max_new_tokens": 2}, folder="unbroken"))
    run = make_run([], model={"max_new_tokens": 2})
    run.folder.mkdir()
    (run.folder / "predictions.jsonl").write_text("earlier\n")
    step = run.module.predict_step
    generated: list[int] = []

    def fail_later(batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise RuntimeError("broken")
        return step(batch, batch_idx)

    monkeypatch.setattr(run.module, "predict_step", fail_later)
    with pytest.raises(RuntimeError, match="broken"):
        predict(run)
    assert (run.folder / "predictions.jsonl").read_text() == "earlier\n"
    with (run.folder / ".predictions.jsonl.rank-0").open("a") as part:
        part.write('{"row": 2, "pro')
    again = make_run([], model={"max_new_tokens": 3 if changed else 2})
    generate = CausalLM.generate

    def counted(self: CausalLM, batch: Any, *args: Any, **options: Any) -> Any:
        generated.extend(batch.example_ids.tolist())
        return generate(self, batch, *args, **options)

    monkeypatch.setattr(CausalLM, "generate", counted)
    found = predict(again)
    assert generated == ([0, 1, 2, 3] if changed else [2, 3])
    assert changed or found == expected


def test_prompts_of_a_file(tiny_model: Path, tmp_path: Path) -> None:
    """A text, and messages whose last response is left out; the data set of the config is not even there.

    Rows without a prompt are counted, and the first is named.
    """
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    file = tmp_path / "prompts.jsonl"
    rows = ({"prompt": "Hello?"}, {"messages": chat}, {"prompt": chat[:1]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "predict",
        f"--prompts={file}",
        "--model=smollit.modules.SFTModule",
        f"--model.model_name={tiny_model}",
        "--model.max_new_tokens=4",
        "--data=smollit.data.UltraChatDataModule",
        "--data.dataset=no/such/folder/at/all",
        "--data.max_length=64",
        "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]
    main(words)
    found = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    render = AutoTokenizer.from_pretrained(tiny_model).apply_chat_template
    asked = [[{"role": "user", "content": text}] for text in ("Hello?", "Hi", "Hi")]
    assert [entry["prompt"] for entry in found] == [
        render(messages, add_generation_prompt=True, tokenize=False) for messages in asked
    ]
    assert found[1]["answer"] == found[2]["answer"]
    file.write_text('{"prompt": "Hello?"}\n{"text": "no"}\n{"prompt"\n')
    with pytest.raises(SystemExit, match=r"2 rows can't be used \(row 1: no prompt"):
        main(words)


# case: E5
def test_a_response_ends_at_the_last_position_and_a_prompt_that_does_not_fit_is_named(
    make_run: Any, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """P positions, the length of the longest prompt, which gets no response; one of P - 1 tokens gets 1 token.

    What transformers generates with max_new_tokens = P - length is the reference; prompts with room for 6 get 6.
    """
    data = {"val_split": "test_sft[:8]", "max_length": 400}
    expected = predict(make_run([], model={"max_new_tokens": 6}, data=data, folder="whole"))
    model, tokenizer = (auto.from_pretrained(tiny_model) for auto in (AutoModelForCausalLM, AutoTokenizer))
    prompts = [tokenizer(entry["prompt"], add_special_tokens=False, return_tensors="pt") for entry in expected]
    positions = max(prompt["input_ids"].shape[1] for prompt in prompts)
    small = edited(tiny_model, tmp_path / "small", max_position_embeddings=positions)
    with caplog.at_level("WARNING", "smollit"):
        found = predict(make_run([], model={"max_new_tokens": 6, "model_name": str(small)}, data=data))
    named: dict[str, list[int]] = {"max_new_tokens": [], "last_position": [], "prompt_too_long": []}
    for entry, before, prompt in zip(found, expected, prompts, strict=True):
        left = positions - prompt["input_ids"].shape[1]
        named[entry["finish"]].append(entry["row"])
        if 0 < left < 6:
            output = model.generate(**prompt, max_new_tokens=left, do_sample=False, eos_token_id=[2, 0], pad_token_id=0)
            assert entry["answer"] == tokenizer.decode(output[0, -left:]) and entry["finish"] == "last_position"
        elif left:
            assert entry == before and entry["finish"] == "max_new_tokens"
        else:
            assert entry["answer"] == "" and entry["finish"] == "prompt_too_long"
    assert all(named.values())
    for finish in ("last_position", "prompt_too_long"):
        rows = ", ".join(map(str, named[finish]))
        assert f"(`finish` is {finish}): rows {rows}" in caplog.text


def test_parts_of_ranks_are_merged_in_order_of_rows(tmp_path: Path) -> None:
    """Rank 0 has rows 0, 2, 10; rank 1 has 1, 3: sorted as numbers. U+2028 is no line end in JSON Lines."""
    parts = [tmp_path / "0", tmp_path / "1"]
    for part, rows in zip(parts, ([0, 2, 10], [1, 3]), strict=True):
        part.write_text("{}\n" + "".join(f'{{"row": {row}, "answer": "a\u2028b"}}\n' for row in rows), encoding="utf-8")
    assert len(merge(parts, tmp_path / "all")) == 5
    lines = (tmp_path / "all").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["row"] for line in lines if line] == [0, 1, 2, 3, 10]
    assert not any(part.exists() for part in parts)


def test_responses_are_plain_text(tiny_model: Path) -> None:
    """Special tokens go, spaces before punctuation stay, and text after an end marker of several tokens goes."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer.encode("<|im_start|>Well , yes .</s>\n<|user|>", add_special_tokens=False)
    assert response_text(load_template(tokenizer, "article"), ids) == "Well , yes ."
    assert response_text(load_template(tokenizer, "chatml"), ids) == "Well , yes .</s>\n<|user|>"
