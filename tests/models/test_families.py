"""docs/models.md: every family with every backend, against transformers' own logits of separate rows."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from smollit.batch import Batch
from smollit.commands.export.export import build_model, whole_weights
from smollit.commands.export.other_readers import spell_config
from smollit.data.batching.collate import collate_prompts, unpacked
from smollit.functional.attention import AttentionBackend
from smollit.models import CausalLM
from smollit.models.pretrained import load_config
from tests.conftest import ROOT, Example, batch_of, chats_of
from tests.models.families import FAMILIES, save_family

BACKENDS: tuple[AttentionBackend, ...] = ("varlen", "documents", "sdpa", "eager", "flex_attention", "rows")
CHATS = chats_of(list(range(10, 19)), list(range(30, 37)), [5, 6, 7])
PAIRS: list[Example] = [
    {"prompt_ids": [1, 3, 4, 5], "chosen_ids": list(range(60, 67)), "rejected_ids": list(range(70, 79)), "row": 0},
    {"prompt_ids": [1, 8], "chosen_ids": [9, 11], "rejected_ids": [40, 41, 42, 2], "row": 1},
]
Values = tuple[Tensor, dict[str, Tensor]]


def weighted(model: CausalLM | PreTrainedModel, sums: list[Tensor]) -> Values:
    """1, -2, 3, ... times the sums, and its gradients; none where the sums have none."""
    model.zero_grad()
    total = sum(((-1) ** index * (index + 1.0) * one for index, one in enumerate(sums)), torch.zeros(()))
    if total.requires_grad:
        total.backward()
    inner = model.model if isinstance(model, CausalLM) else model
    return total.detach(), {name: p.grad.clone() for name, p in inner.named_parameters() if p.grad is not None}


def ours(model: CausalLM, batches: list[Batch]) -> Values:
    with torch.set_grad_enabled(model.attention != "flex_attention"):  # it has no backward pass on a CPU
        return weighted(model, [one for batch in batches for one in model(batch).sums])


def transformers_own(folder: Path) -> Values:
    """Each chat, and each prompt with a response, as one row through the whole model."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()

    def logp(ids: list[int], start: int) -> Tensor:
        logps = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), dim=1)
        return torch.stack([logps[index - 1, ids[index]] for index in range(start, len(ids))]).sum()

    chats = torch.stack([logp(chat["input_ids"], 1) for chat in CHATS]).sum()
    pairs = [
        logp(pair["prompt_ids"] + pair[name], len(pair["prompt_ids"]))
        for pair in PAIRS
        for name in ("chosen_ids", "rejected_ids")
    ]
    return weighted(model, [chats, *pairs])


def is_right(folder: Path, attention: AttentionBackend) -> bool:
    """Whether the backend is accepted; then its loss, to 1e-5, and its gradients, to 1e-5, are transformers' own."""
    try:
        model = CausalLM(str(folder), attention=attention, chunk_size=3).eval()  # some families have dropout
    except ValueError:  # tests/models/test_verify.py reads the message
        return False
    packed = attention != "rows"
    with torch.compiler.set_stance("force_eager"):
        loss, gradients = ours(model, [batch_of(CHATS, packed=packed), batch_of(PAIRS, packed=packed)])
    expected, expected_gradients = transformers_own(folder)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    if attention != "flex_attention":
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=5e-5)
    return True


# promise: families
# case: G1, G2, G3, G4
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_families_says_what_is_right(family: str, tmp_path: Path) -> None:
    """Packed chats and pairs that share prompts: the line in docs/models.md says which backends compute transformers'
    own values, and which one `auto` takes. An export scores as the policy does."""
    folder = save_family(family, tmp_path / "model")
    cells = ["yes" if is_right(folder, attention) else "no" for attention in BACKENDS]
    policy = CausalLM(str(folder)).eval()
    line = f"| {family} | `{policy.attention}` | {' | '.join(cells)} |"
    assert line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines(), line
    exported = build_model(load_config(str(folder)), whole_weights(policy), torch.float32)
    exported.save_pretrained(tmp_path / "export")
    spell_config(tmp_path / "export")
    found, expected = (model(batch_of(CHATS)).logps for model in (CausalLM(str(tmp_path / "export")).eval(), policy))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["Mamba", "BLOOM"])
def test_a_model_without_a_limit_of_positions_trains_and_responds(family: str, tmp_path: Path) -> None:
    """The configs of these families on the Hub have no `max_position_embeddings`."""
    config = save_family(family, tmp_path) / "config.json"
    settings = json.loads(config.read_text())
    del settings["max_position_embeddings"]
    config.write_text(json.dumps(settings))
    model = CausalLM(str(tmp_path)).eval()
    assert torch.isfinite(model(batch_of(CHATS)).logps).all()
    prompts = collate_prompts(unpacked([{"prompt_ids": [5, 6, 7], "row": 0}]))
    assert 0 < len(model.generate(prompts, 3, stop_ids=[])[0]) <= 3
