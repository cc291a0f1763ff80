"""InstructionDifficulty: `data.select: ifd`. How much its prompt helps a model with each response.

The instruction-following difficulty of https://arxiv.org/abs/2308.12032: the mean negative log-likelihood per token of
the response after its prompt, divided by that of the response alone.
"""

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.batch import Batch
from smollit.data import ChatDataModule
from smollit.data.batching.collate import collate_chats, unpacked
from smollit.data.batching.dataset import Example
from smollit.data.batching.documents import Documents
from smollit.functional.rows import RowValues
from smollit.modules import SFTModule
from smollit.training.scores.scorer import Scorer
from smollit.training.steps import data_module


class InstructionDifficulty(Callback):
    """Scores the training chats by the model that a run begins with, before it is loaded: `data.select: ifd`.

    SmollitTrainer has this callback. Another Trainer needs it in its list of callbacks.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning calls this after the data module's setup, and before `configure_model`.

        Raises:
            ValueError: If the model has random weights.
        """
        data = data_module(trainer)
        if not isinstance(pl_module, SFTModule) or not isinstance(data, ChatDataModule) or stage != "fit":
            return
        if data.select == "ifd" and data.waits_for_selection:
            if pl_module.weights == "random":
                raise ValueError(
                    "`data.select: ifd` scores chats by the model, and with `model.weights: random` it knows none"
                )
            scorer = ChatScorer(trainer, pl_module, pl_module.model_name)
            data.select_by_model(scorer.values(data.documents("train")))


class ChatScorer(Scorer):
    """Sums of log p over the loss tokens of each chat: after its prompts, and each response alone, [N, 2]."""

    what = "difficulty"

    @torch.no_grad()
    def score(self, documents: Documents, examples: range) -> np.ndarray:
        """The values of a range of chats, in batches of similar length.

        Raises:
            ValueError: If a value is not finite.
        """
        values = np.zeros((len(examples), 2), np.float32)
        for some in self.batches(documents, examples):
            chats = documents.fetch(some)
            positions = [chat.start - examples.start for chat in some]
            values[positions, 0] = self._sums(chats)
            alone = [
                (position, one) for position, chat in zip(positions, chats, strict=True) for one in self.alone(chat)
            ]
            np.add.at(values[:, 1], [position for position, _ in alone], self._sums([one for _, one in alone]))
            if not np.isfinite(values[positions]).all():
                raise ValueError(f"log-probabilities of rows {[chat['row'] for chat in chats]} are not finite")
        return values

    def alone(self, chat: Example) -> list[Example]:
        """Each response of a chat after nothing but the header of an assistant turn."""
        ids, spans = chat["input_ids"], chat["spans"]
        responses = [ids[start:end] for start, end in zip(spans[::2], spans[1::2], strict=True)]
        return [
            chat
            | {"input_ids": [*self.header, *response], "spans": [len(self.header), len(self.header) + len(response)]}
            for response in responses
        ]

    @property
    def header(self) -> list[int]:
        """The tokens before a response: at least one, after which the response's first is predicted."""
        template = self.data.template
        return template.encode([template.generation_prompt])[0] or template.stop_ids()[:1]

    def _sums(self, chats: list[Example]) -> np.ndarray:
        """The sum of log p over the loss tokens of each chat."""
        batch: Batch = move_data_to_device(collate_chats(unpacked(chats)), self.trainer.strategy.root_device)
        with self.trainer.precision_plugin.forward_context():
            found = RowValues.of_chats("train", batch, self.model(batch).logps)
        return (-found.losses * found.weights).cpu().numpy()
