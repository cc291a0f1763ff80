"""ReferenceScores: `model.reference: precomputed`. The reference's log-probabilities become columns of the data.

They are computed once, for the training set and every evaluation set, before the models of the run are loaded.
"""

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.batch import Batch
from smollit.data import ChatDataModule
from smollit.data.batching.collate import unpacked
from smollit.data.batching.documents import Documents
from smollit.models.pretrained import weights_fingerprint
from smollit.modules import DPOModule
from smollit.training.scores.scorer import Scorer
from smollit.training.steps import data_module


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
    scorer = PairScorer(trainer, module, module.scorer.name)
    for split in splits:
        if split != "predict":
            values = scorer.values(scorer.data.documents(split))
            if split == "train" and scorer.data.waits_for_selection:
                values = scorer.data.select_by_model(values)
                scorer.write(scorer.data.examples["train"], values)
            scorer.data.examples[split].attach_reference_logps(values)


class PairScorer(Scorer):
    """log p of the chosen and of the rejected response of each pair under the reference, [N, 2]."""

    @torch.no_grad()
    def score(self, documents: Documents, pairs: range) -> np.ndarray:
        """log p of chosen and rejected response of `pairs`, [N, 2], in batches of documents of similar length.

        Raises:
            ValueError: If a value is not finite.
        """
        values = np.zeros((len(pairs), 2), np.float32)
        for some in self.batches(documents, pairs):
            fetched = unpacked(documents.fetch(some))
            positions = [pair - pairs.start for document in some for pair in document]
            batch: Batch = move_data_to_device(self.data.collate(fetched), self.trainer.strategy.root_device)
            with self.trainer.precision_plugin.forward_context():
                values[positions] = self.model(batch).sums[batch.pairs].cpu().numpy()
            if not np.isfinite(values[positions]).all():
                rows = batch.example_ids.tolist()
                raise ValueError(f"the reference's log-probabilities of rows {rows} are not finite")
        return values
