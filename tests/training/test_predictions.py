"""WritePredictions: every row once, in order, with the model's prompt."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollit.data.template.template import load_template
from smollit.training.predictions import merge, response_text


def predict(run: Any) -> list[dict[str, Any]]:
    run.trainer.predict(run.module, datamodule=run.data)
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


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


def test_a_prediction_that_fails_keeps_what_it_had(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails at the second batch of 2: the first 2 responses are on the disk, and an earlier result is untouched."""
    run = make_run([], model={"max_new_tokens": 2})
    run.folder.mkdir()
    (run.folder / "predictions.jsonl").write_text("earlier\n")
    step = run.module.predict_step

    def fail_later(batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise RuntimeError("broken")
        return step(batch, batch_idx)

    monkeypatch.setattr(run.module, "predict_step", fail_later)
    with pytest.raises(RuntimeError, match="broken"):
        predict(run)
    assert len((run.folder / ".predictions.jsonl.rank-0").read_text().splitlines()) == 2
    assert (run.folder / "predictions.jsonl").read_text() == "earlier\n"


def test_parts_of_ranks_are_merged_in_order_of_rows(tmp_path: Path) -> None:
    """Rank 0 has rows 0, 2, 10; rank 1 has 1, 3: sorted as numbers. U+2028 is no line end in JSON Lines."""
    parts = [tmp_path / "0", tmp_path / "1"]
    for part, rows in zip(parts, ([0, 2, 10], [1, 3]), strict=True):
        part.write_text("".join(f'{{"row": {row}, "answer": "a\u2028b"}}\n' for row in rows), encoding="utf-8")
    assert merge(parts, tmp_path / "all") == 5
    lines = (tmp_path / "all").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["row"] for line in lines if line] == [0, 1, 2, 3, 10]
    assert not any(part.exists() for part in parts)


def test_responses_are_plain_text(tiny_model: Path) -> None:
    """Special tokens go, spaces before punctuation stay, and text after an end marker of several tokens goes."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer.encode("<|im_start|>Well , yes .</s>\n<|user|>", add_special_tokens=False)
    assert response_text(load_template(tokenizer, "article"), ids) == "Well , yes ."
    assert response_text(load_template(tokenizer, "chatml"), ids) == "Well , yes .</s>\n<|user|>"
