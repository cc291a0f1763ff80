"""ChatDataModule: the loaders of a run and its position in the data, through Lightning's hooks."""

import logging
from statistics import median
from typing import Any

from smollit.data.batched import BatchedDataModule
from smollit.data.batching.collate import collate_prompts
from smollit.data.batching.dataset import Examples
from smollit.data.batching.documents import Documents
from smollit.data.batching.loaders import BatchLoader, Collate, batch_loader, stream_loader
from smollit.data.batching.sampler import BatchSampler
from smollit.data.batching.streaming import StreamingExamples
from smollit.data.sources.mixture import Part

log = logging.getLogger("smollit.data")


class ChatDataModule(BatchedDataModule):
    """Chats to fine-tune on, from the Hub or from local files, in any known format.

    Args:
        dataset: Hub id, a folder laid out as on the Hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), a glob, or a URL; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        **options: All other options of BatchedDataModule.
    """

    def __init__(self, dataset: str | list[Part], **options: Any) -> None:
        super().__init__(dataset, **options)

    def loss_tokens_per_batch(self) -> float | None:
        """Mean number of loss tokens of a training micro-batch of all devices; None for a stream."""
        batches = self.training_batches()
        if not isinstance(batches, BatchSampler):
            return None
        _, parts = self._used["train"]
        tokens = sum(w * part.report.loss_tokens for w, part in zip(self.splits.weights(), parts, strict=True))
        # The last micro-batch of an epoch may be smaller, and those of `max_batch_tokens` differ.
        return tokens / len(batches.rows(0)) * median(batches.sizes(0, 0))

    # ---- Lightning's hooks

    def prepare_data(self) -> None:
        """Tokenize what the command needs and the cache lacks, if optimizer steps can have the rows that are set."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.set_accumulation(self.trainer, self.trainer.world_size)
        super().prepare_data()

    def setup(self, stage: str) -> None:
        """Load what the stage needs; a fit starts at the start of an epoch, or at the position of a checkpoint."""
        super().setup(stage)
        if stage == "fit":
            self.position.begin(self.trainer.current_epoch if self.trainer else 0)
            if self.trainer:  # on every rank; `prepare_data` runs on one of each node
                self.set_accumulation(self.trainer, self.trainer.world_size)

    def state_dict(self) -> dict[str, Any]:
        """The position of training in the data; Lightning saves it in every checkpoint."""
        batches = self.training_batches()
        if batches is None:
            return {}
        return self.position.state(batches, self.trainer) | {
            "seed": self.seed,
            "max_batch_tokens": self.max_batch_tokens,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at the position of a checkpoint.

        Raises:
            ValueError: If the number of training rows is not the one that the run began with, or the checkpoint does
                not have the number that `max_batch_tokens: auto` needs.
        """
        batches = self.training_batches()
        if batches is None or (self.trainer is not None and self.trainer.state.fn != "fit"):
            return
        if self.lacks_batch_tokens:
            if not state_dict.get("max_batch_tokens"):
                raise ValueError(
                    "the run began without `data.max_batch_tokens`, so its checkpoint has no number for auto: set one"
                )
            self.use_batch_tokens(state_dict["max_batch_tokens"])
            batches = self.training_batches()
            assert batches is not None
        batches = self._with_seed_of(state_dict, batches)
        now, before = batches.num_rows() or 0, state_dict["num_rows"]
        if now != before:
            raise ValueError(
                f"the run began on {before:,} training rows, and the data now has {now:,}: a resumed run would see some"
                " rows twice and others never. Give the same data, or start a new run"
            )
        self.position.load(state_dict, batches)

    def _with_seed_of(
        self, state_dict: dict[str, Any], batches: BatchSampler | StreamingExamples
    ) -> BatchSampler | StreamingExamples:
        """The batches in the order that the run began with, if `data.seed` leaves it open."""
        seed = state_dict.get("seed", 0)  # before version 0.3, the default was 0
        if not self.follows_seed_everything or seed == self.seed:
            return batches
        if any(part.max_rows is not None for part in self.splits.dataset):
            raise ValueError(f"the run drew its `max_rows` with the seed {seed}: set `data.seed: {seed}`")
        log.info("the order of the rows is that of the seed %s, with which the run began", seed)
        self.seed, self._batches = seed, None
        found = self.training_batches()
        assert found is not None
        return found

    def train_dataloader(self) -> BatchLoader:
        """Batches of the epoch and position that the run has reached."""
        if self.streaming and self.trainer is not None and self.trainer.max_steps == -1:
            raise ValueError("`data.streaming` does not know how long an epoch is: set `trainer.max_steps`")
        batches = self.training_batches()
        if batches is None:
            raise ValueError("there is no split to train: set `data.train_split`")
        if self.lacks_batch_tokens:
            raise ValueError("`data.max_batch_tokens: auto` needs SmollitTrainer: with another Trainer, set a number")
        self.position.settle(batches, self.trainer)
        if isinstance(batches, StreamingExamples):
            return stream_loader(
                batches, self.collate, num_workers=self.num_workers, seed=self.seed, position=self.position
            )
        self._log_packing(batches)
        documents = self.documents("train")
        return batch_loader(
            documents, batches, self.collate, num_workers=self.num_workers, seed=self.seed, position=self.position
        )

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Every validation example once; a loader for each named set."""
        keys = [key for key in self.examples if key.split("/")[0] == "val"]
        if not keys and self.trainer is not None and self.trainer.state.fn == "validate":
            raise ValueError("there is no split to validate: set `data.val_split` or `data.val_sets`")
        loaders = [self._evaluation_loader(self.documents(key), self.collate) for key in keys]
        return loaders[0] if len(loaders) == 1 else loaders

    def test_dataloader(self) -> BatchLoader:
        """Every test example once."""
        return self._evaluation_loader(self.documents("test"), self.collate)

    def predict_dataloader(self) -> BatchLoader:
        """Prompts alone, without labels."""
        return self._evaluation_loader(self._examples("predict"), collate_prompts)

    def _evaluation_loader(self, examples: Examples | Documents, collate: Collate) -> BatchLoader:
        rank, world_size = self._rank()
        sampler = BatchSampler(
            examples.lengths,
            self.val_batch_size,
            max_batch_tokens=self.max_batch_tokens or 0,
            rank=rank,
            world_size=world_size,
        )
        return batch_loader(examples, sampler, collate, num_workers=self.num_workers, seed=self.seed)
