"""Scorer: a frozen model that gives each example two values, which are computed once and kept on disk.

The key of the values covers all that changes one: the tokens, the weights, the dtype, precision and backend. They are
written in files as they are computed, so that a killed run continues where it stopped.
"""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
from lightning.pytorch import Trainer

from smollit.data import ChatDataModule
from smollit.data.batching.dataset import Examples
from smollit.data.batching.documents import Documents
from smollit.models.causal_lm import CausalLM
from smollit.models.pretrained import weights_fingerprint
from smollit.modules.policy import PolicyModule
from smollit.training.scores.store import PART, Store
from smollit.training.steps import data_module

log = logging.getLogger(__name__)
FORMAT_VERSION = 1


class Scorer(ABC):
    """A frozen model, which is loaded when the first value is missing, and its values of examples.

    Args:
        trainer: Its devices and precision are used.
        module: Loads the model.
        model_name: Hub id or folder of the model.
    """

    what: ClassVar[str] = "reference"  # in logs, and in the names of folders

    def __init__(self, trainer: Trainer, module: PolicyModule, model_name: str) -> None:
        self.trainer = trainer
        self.module = module
        self.model_name = model_name

    @property
    def data(self) -> ChatDataModule:
        """The data module of the run."""
        data = data_module(self.trainer)
        assert isinstance(data, ChatDataModule)
        return data

    @cached_property
    def model(self) -> CausalLM:
        """The whole model on this rank's device."""
        model = self.module.load(self.model_name).requires_grad_(False).eval()
        return model.to(self.trainer.strategy.root_device)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights."""
        return weights_fingerprint(self.model_name)

    def values(self, documents: Documents) -> np.ndarray:
        """The values of all examples, [N, 2]; those that are not on disk are computed."""
        examples = documents.examples
        stores = self.stores(examples)
        for store, first in zip(stores, examples.first_examples.tolist(), strict=True):
            missing = store.missing(self.trainer.global_rank, self.trainer.world_size)
            if missing:
                log.info("%s: scoring %s parts of %s examples", self.what, f"{len(missing):,}", PART)
            for done, part in enumerate(missing, 1):
                store.write(part, self.score(documents, range(first + part.start, first + part.stop)))
                if done == len(missing) or done % max(len(missing) // 10, 1) == 0:
                    log.info("%s: %s of %s parts scored", self.what, f"{done:,}", f"{len(missing):,}")
        self.trainer.strategy.barrier(f"all values of the {self.what} are on disk")
        return np.concatenate([store.read() for store in stores])

    def write(self, examples: Examples, values: np.ndarray) -> None:
        """Write the values of selected examples under their own key too, where the next stage finds them."""
        for store, first in zip(self.stores(examples), examples.first_examples.tolist(), strict=True):
            for part in store.missing(self.trainer.global_rank, self.trainer.world_size):
                store.write(part, values[first + part.start : first + part.stop])
        self.trainer.strategy.barrier(f"the selected values of the {self.what} are on disk")

    def stores(self, examples: Examples) -> list[Store]:
        """Where the values of the parts of a split are."""
        folder = self.data.cache_dir
        return [Store(folder / f"{self.what}-{self.key(tokens)}", size) for tokens, size in examples.parts_sizes()]

    def key(self, tokens: str) -> str:
        """Identifies the values of one tokenized data set."""
        module, precision = self.module, str(self.trainer.precision)
        parts = [self.fingerprint, str(module.weights_dtype()), precision, module.attention, FORMAT_VERSION]
        return hashlib.sha256(json.dumps([*parts, tokens]).encode()).hexdigest()[:32]

    def batches(self, documents: Documents, examples: range) -> Iterator[list[range]]:
        """Documents of similar length, the longest first, each as the examples that it has of a range."""
        lengths = documents.examples.lengths
        longest_first = sorted(documents.within(examples), key=lambda some: -sum(lengths[one] for one in some))
        size = self.data.val_batch_size
        return (longest_first[start : start + size] for start in range(0, len(longest_first), size))

    @abstractmethod
    def score(self, documents: Documents, examples: range) -> np.ndarray:
        """The values of a range of examples, [number of them, 2].

        Raises:
            ValueError: If a value is not finite.
        """
