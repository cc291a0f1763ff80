"""ReferenceScores: `model.reference: precomputed`. The reference's log-probabilities become columns of the data.

They are computed once, for the training set and every evaluation set, before the models of the run are loaded, and
stored on disk. The key covers all that changes a value: the tokens, the weights, the dtype, precision and backend.
Values are written in files of `PART` pairs as they are computed, so that a killed run continues where it stopped.
"""

import hashlib
import json
import logging
import os
import uuid
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.batch import Batch
from smollit.data import ChatDataModule
from smollit.data.batching.collate import unpacked
from smollit.data.batching.dataset import Examples
from smollit.data.batching.documents import Documents
from smollit.models.causal_lm import CausalLM
from smollit.models.pretrained import weights_fingerprint
from smollit.modules import DPOModule
from smollit.training.steps import data_module

log = logging.getLogger(__name__)
PART = 256  # pairs per file
FORMAT_VERSION = 1


class ReferenceScores(Callback):
    """Scores the pairs of the data module by the reference, before models are loaded: `model.reference: precomputed`.

    SmollitTrainer has this callback. Another Trainer needs it in its list of callbacks.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning calls this after the data module's setup, and before `configure_model`."""
        if stage != "predict" and isinstance(pl_module, DPOModule) and reference_scores_are_needed(pl_module):
            attach_reference_scores(trainer, pl_module)


def reference_scores_are_needed(module: LightningModule) -> bool:
    """Whether the module reads the reference's log-probabilities out of the batch, and loads no reference model."""
    return isinstance(module, DPOModule) and module.scorer.mode == "precomputed"


def attach_reference_scores(trainer: Trainer, module: DPOModule) -> None:
    """Give all examples of the data module their reference's values; compute those that are not on disk.

    Args:
        trainer: Its devices and precision are used.
        module: The DPO module of the reference.

    Raises:
        ValueError: If there are no examples to score, or a value is not finite.
    """
    data = data_module(trainer)
    splits = data.examples if isinstance(data, ChatDataModule) else {}
    if trainer.training and "train" not in splits:
        raise ValueError(
            "`model.reference: precomputed` needs the data module's tokenized pairs before training, which streams and"
            " user-defined loaders do not have: use `frozen`"
        )
    module.scorer.fingerprint = weights_fingerprint(module.scorer.name)
    scorer = _Scorer(trainer, module)
    for split in splits:
        if split != "predict":
            values = _values(scorer, scorer.data.documents(split))
            if split == "train" and scorer.data.waits_for_selection:
                values = scorer.data.select_by_model(values)
                _write_selected(scorer, values)
            scorer.data.examples[split].attach_reference_logps(values)


def _values(scorer: "_Scorer", documents: Documents) -> np.ndarray:
    """The values of all pairs, [N, 2]; those that are not on disk are computed."""
    examples = documents.examples
    stores = scorer.stores(examples)
    for store, first in zip(stores, examples.first_examples.tolist(), strict=True):
        missing = store.missing(scorer.trainer.global_rank, scorer.trainer.world_size)
        if missing:
            log.info("reference: scoring %s parts of %s pairs", f"{len(missing):,}", PART)
        for done, part in enumerate(missing, 1):
            store.write(part, scorer.score(documents, range(first + part.start, first + part.stop)))
            if done == len(missing) or done % max(len(missing) // 10, 1) == 0:
                log.info("reference: %s of %s parts of %s pairs scored", f"{done:,}", f"{len(missing):,}", PART)
    scorer.trainer.strategy.barrier("all reference values are on disk")
    return np.concatenate([store.read() for store in stores])


def _write_selected(scorer: "_Scorer", values: np.ndarray) -> None:
    """Write the values of selected pairs under their own key too, where the next stage finds them."""
    examples, trainer = scorer.data.examples["train"], scorer.trainer
    for store, first in zip(scorer.stores(examples), examples.first_examples.tolist(), strict=True):
        for part in store.missing(trainer.global_rank, trainer.world_size):
            store.write(part, values[first + part.start : first + part.stop])
    trainer.strategy.barrier("the selected reference values are on disk")


class Store:
    """Values of the pairs of one tokenized data set, [N, 2] in fp32, in files that are written atomically.

    Args:
        folder: Folder of the files.
        num_pairs: N.
    """

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
        """The parts of one rank that are not on disk, or damaged."""
        # Divided before looking: other ranks write meanwhile, and each would find a different remainder.
        return [part for part in self.parts()[rank::world_size] if not self._is_whole(part)]

    def _is_whole(self, part: range) -> bool:
        """Whether the file of a part has all of its values; one that has not is named."""
        path = self.path(part)
        if not path.exists():
            return False
        try:
            if np.load(path).shape == (len(part), 2):
                return True
        except (OSError, ValueError, EOFError):
            pass
        log.warning("%s is damaged: its pairs are scored again", path)
        return False

    def write(self, part: range, values: np.ndarray) -> None:
        """Write the values of a part."""
        assert values.shape == (len(part), 2)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{uuid.uuid4().hex}.npy"
        with temporary.open("wb") as content:
            np.save(content, values.astype(np.float32))
            content.flush()
            os.fsync(content.fileno())
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


class _Scorer:
    """The reference model, which is loaded when the first value is missing, and the key of its values."""

    def __init__(self, trainer: Trainer, module: DPOModule) -> None:
        self.trainer = trainer
        self.module = module
        self._model: CausalLM | None = None

    @property
    def data(self) -> ChatDataModule:
        """The data module of the run."""
        data = data_module(self.trainer)
        assert isinstance(data, ChatDataModule)
        return data

    @property
    def model(self) -> CausalLM:
        """The whole reference model on this rank's device."""
        if self._model is None:
            model = self.module.load(self.module.scorer.name).requires_grad_(False).eval()
            self._model = model.to(self.trainer.strategy.root_device)
        return self._model

    def stores(self, examples: Examples) -> list[Store]:
        """Where the values of the parts of a split are."""
        folder = self.data.cache_dir
        return [Store(folder / f"reference-{self.key(tokens)}", size) for tokens, size in examples.parts_sizes()]

    def key(self, tokens: str) -> str:
        """Identifies the values of one tokenized data set."""
        module, precision = self.module, str(self.trainer.precision)
        parts = [module.scorer.fingerprint, str(module.weights_dtype()), precision, module.attention, FORMAT_VERSION]
        return hashlib.sha256(json.dumps([*parts, tokens]).encode()).hexdigest()[:32]

    @torch.no_grad()
    def score(self, documents: Documents, pairs: range) -> np.ndarray:
        """log p of chosen and rejected response of `pairs`, [N, 2], in batches of documents of similar length.

        Raises:
            ValueError: If a value is not finite.
        """
        lengths = documents.examples.lengths
        longest_first = sorted(documents.within(pairs), key=lambda some: -sum(lengths[pair] for pair in some))
        values = np.zeros((len(pairs), 2), np.float32)
        size = self.data.val_batch_size
        for some in (longest_first[start : start + size] for start in range(0, len(longest_first), size)):
            fetched = unpacked(documents.fetch(some))
            positions = [pair - pairs.start for document in some for pair in document]
            batch: Batch = move_data_to_device(self.data.collate(fetched), self.trainer.strategy.root_device)
            with self.trainer.precision_plugin.forward_context():
                values[positions] = self.model(batch).sums[batch.pairs].cpu().numpy()
            if not np.isfinite(values[positions]).all():
                rows = batch.example_ids.tolist()
                raise ValueError(f"the reference's log-probabilities of rows {rows} are not finite")
        return values
