"""Scores that need no generation: the loss of chats, and which response of a pair a model prefers."""

import torch
from lightning.fabric.utilities import move_data_to_device

from smollit.batch import Batch
from smollit.commands.score.interval import Rows, rows_of
from smollit.data import ChatDataModule, PreferenceDataModule
from smollit.models import CausalLM


def split_name(name: str) -> tuple[str, str]:
    """The data set and the split of `data:split`; without one, `train`."""
    data, _, split = name.rpartition(":")
    return (data, split) if data and "/" not in split else (name, "train")


def batches(name: str, model: str, *, pairs: bool, max_rows: int, max_length: int) -> list[Batch]:
    """Each row of a data set as a batch, tokenized with a model's template."""
    data, split = split_name(name)
    kind = PreferenceDataModule if pairs else ChatDataModule
    module = kind(
        data,
        train_split=f"{split}[:{max_rows}]",  # the same part, which is tokenized once
        val_split=f"{split}[:{max_rows}]",
        tokenizer_name=model,
        max_length=max_length,
        val_batch_size=1,
        packing="off",
    )
    module.prepare_data()
    module.setup("validate")
    loader = module.val_dataloader()
    assert not isinstance(loader, list)
    return list(loader)


@torch.inference_mode()
def losses(model: CausalLM, rows: list[Batch]) -> Rows:
    """-log p of the loss tokens of each row, and their number."""
    rows = move_data_to_device(rows, model.model.device)
    return rows_of([(-float(model(batch).logps.sum()), float(batch.num_loss_tokens)) for batch in rows])


@torch.inference_mode()
def preferences(model: CausalLM, reference: CausalLM, rows: list[Batch]) -> Rows:
    """1 where the implicit reward of the chosen response is higher than that of the rejected one; a tie counts 1/2."""
    found = []
    for batch in move_data_to_device(rows, model.model.device):
        pairs = model(batch, mean_logits=True).per_pair(reference=reference(batch).sums)
        found += [(float(margin > 0) + 0.5 * float(margin == 0), 1.0) for margin in pairs.margin]
    return rows_of(found)
