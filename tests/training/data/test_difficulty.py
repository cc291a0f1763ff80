"""`data.select: ifd`: chats whose prompt helps the model least with the response."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from smollit.data import ChatDataModule
from smollit.modules import SFTModule
from smollit.training import SmollitTrainer

NUM_CHATS = 6


def test_the_chats_whose_prompt_helps_least(tiny_model: Path, tmp_path: Path) -> None:
    """Half of 6 chats, by the ratio of two mean losses that transformers gives: of the responses after their prompts,
    and of each response after the header alone. Ratios of 1 and more are left out. Their values are kept on disk."""
    turns = ("user", "assistant") * 2
    rows = [
        {"messages": [{"role": role, "content": f"{role} says {number * n}" * (n + 1)} for n, role in enumerate(turns)]}
        for number in range(NUM_CHATS)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def data(**options: object) -> ChatDataModule:
        return ChatDataModule(
            str(tmp_path / "rows.jsonl"), val_split=None, tokenizer_name=str(tiny_model), chat_template="chatml",
            max_length=96, cache_dir=str(tmp_path / "cache"), train_batch_size=1, val_batch_size=4, seed=3, **options,
        )  # fmt: skip

    whole = data()
    whole.prepare_data()
    whole.setup("fit")
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    header = whole.template.encode([whole.template.generation_prompt])[0]
    assert header

    def loss(ids: list[int], start: int, end: int) -> float:
        with torch.no_grad():
            logps = torch.log_softmax(plain(torch.tensor([ids])).logits[0, start - 1 : end - 1], 1)
        return -logps.gather(1, torch.tensor(ids[start:end])[:, None]).sum().item()

    ratios = []
    for chat in (whole.examples["train"][n] for n in range(NUM_CHATS)):
        ids, spans = chat["input_ids"], list(zip(chat["spans"][::2], chat["spans"][1::2], strict=True))
        alone = [(header + ids[start:end], len(header), len(header) + end - start) for start, end in spans]
        ratios.append(sum(loss(ids, *span) for span in spans) / sum(loss(*one) for one in alone))
    best = sorted(row for row in sorted(range(NUM_CHATS), key=lambda row: -(ratios[row] < 1) * ratios[row])[:3])
    best = [row for row in best if ratios[row] < 1]
    assert 0 < len(best) < NUM_CHATS

    loads = []

    class Counted(SFTModule):
        def load(self, model_name, *args, **options):  # type: ignore[no-untyped-def]
            loads.append(model_name)
            return super().load(model_name, *args, **options)

    for expected in (2, 1):  # the policy; the first time also the model that scores
        loads.clear()
        selected = data(select="ifd", select_share=0.5)
        trainer = SmollitTrainer(
            str(tmp_path / "run"), accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False
        )
        trainer.fit(Counted(str(tiny_model)), datamodule=selected)
        assert selected.examples["train"].column("row").tolist() == best
        assert selected.reports["train"].left_out == {"`data.select: ifd`": NUM_CHATS - len(best)}
        assert len(loads) == expected
    unscored = data(select="ifd", select_share=0.5)
    unscored.setup("fit")
    with pytest.raises(ValueError, match=r"`data\.select: ifd` needs SFTModule, and SmollitTrainer"):
        unscored.train_dataloader()
