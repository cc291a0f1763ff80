"""Log-probabilities of the reference, scored once and kept on disk: for train and every evaluation set.

The key covers all that changes a value: the rows' tokens, the weights, what they are computed in and with. Values are
written in files of `PART` pairs as they come, so a run that is killed goes on where it was.
"""

import hashlib
import json
import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from smollit.batch import Batch
from smollit.models.causal_lm import CausalLM
from smollit.models.pretrained import weights_fingerprint

if TYPE_CHECKING:
    from smollit.modules.base import FineTuningModule

log = logging.getLogger(__name__)
PART = 256  # pairs per file
FORMAT_VERSION = 1


class Store:
    """Values of the pairs of one tokenised data set, [N, 2] in fp32, in files that appear whole or not at all."""

    def __init__(self, folder: Path, num_pairs: int) -> None:
        self.folder = folder
        self.num_pairs = num_pairs

    def parts(self) -> list[range]:
        """The pairs of each file."""
        return [range(start, min(start + PART, self.num_pairs)) for start in range(0, self.num_pairs, PART)]

    def path(self, part: range) -> Path:
        """The file of a part."""
        return self.folder / f"{part.start:09d}.npy"

    def missing(self, rank: int, world_size: int) -> list[range]:
        """The parts of one rank that are not on disk."""
        # Dealt out before looking: other ranks write meanwhile, and each would count what is left in its own way.
        return [part for part in self.parts()[rank::world_size] if not self.path(part).exists()]

    def write(self, part: range, values: np.ndarray) -> None:
        """Keep a part."""
        assert values.shape == (len(part), 2)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{uuid.uuid4().hex}.npy"
        np.save(temporary, values.astype(np.float32))
        os.replace(temporary, self.path(part))

    def read(self) -> np.ndarray:
        """All values, [N, 2].

        Raises:
            ValueError: If other nodes have written theirs into a folder that this one does not see.
        """
        if not all(self.path(part).exists() for part in self.parts()):
            raise ValueError(f"{self.folder} lacks values that other nodes scored: `data.cache_dir` must be shared")
        parts = [np.load(self.path(part)) for part in self.parts()]
        return np.concatenate(parts) if parts else np.zeros((0, 2), np.float32)


def precompute(module: "FineTuningModule", name: str) -> str:
    """Give all examples of the data module their reference's values, scoring those that are not on disk.

    Args:
        module: Whose precision and backend score.
        name: The reference.

    Returns:
        What identifies the reference's weights.

    Raises:
        ValueError: If there are no examples to score, or a value is not finite.
    """
    trainer = module.trainer
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    fingerprint = weights_fingerprint(name)
    examples = {key: rows for key, rows in getattr(data, "examples", {}).items() if key != "predict"}
    if trainer.training and "train" not in examples:
        raise ValueError(
            "`model.reference: precomputed` needs the data module's tokenised pairs before training, which streams and"
            " loaders of your own do not have: take `frozen`"
        )
    base = [fingerprint, str(module.weights_dtype()), str(trainer.precision), module.attention, FORMAT_VERSION]
    scorer: CausalLM | None = None
    for rows in examples.values():
        stores = [Store(data.cache_dir / f"reference-{_hash([*base, key])}", size) for key, size in rows.parts_sizes()]
        for store, offset in zip(stores, rows.first_examples.tolist(), strict=True):
            missing = store.missing(trainer.global_rank, trainer.world_size)
            if missing and scorer is None:
                scorer = module.load(name).requires_grad_(False).eval().to(trainer.strategy.root_device)
            for done, part in enumerate(missing):
                assert scorer is not None
                store.write(part, score(module, scorer, rows, [offset + index for index in part]))
                _tell(done + 1, len(missing))
        trainer.strategy.barrier("all reference values are on disk")
        rows.reference_logps = np.concatenate([store.read() for store in stores])
    return fingerprint


@torch.no_grad()
def score(module: "FineTuningModule", model: CausalLM, examples: Any, indices: list[int]) -> np.ndarray:
    """log p of chosen and rejected of the pairs `indices`, [N, 2]; long pairs with long ones.

    Raises:
        ValueError: If a value is not finite.
    """
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    order = sorted(range(len(indices)), key=lambda place: -examples.lengths[indices[place]])
    values = np.zeros((len(indices), 2), np.float32)
    for start in range(0, len(order), data.val_batch_size):
        places = order[start : start + data.val_batch_size]
        batch: Batch = data.collate(examples.__getitems__([[indices[place]] for place in places]))
        batch = move_data_to_device(batch, module.trainer.strategy.root_device)
        with module.trainer.precision_plugin.forward_context():
            scores = model(batch)
        values[places] = scores.sums[batch.pairs].cpu().numpy()
        if not np.isfinite(values[places]).all():
            raise ValueError(f"the reference's log-probabilities of rows {batch.example_ids.tolist()} are not finite")
    return values


def _tell(done: int, total: int) -> None:
    if done == total or done % max(total // 10, 1) == 0:
        log.info("reference: %s of %s parts of %s pairs scored", f"{done:,}", f"{total:,}", PART)


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
