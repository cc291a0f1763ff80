"""Examples: tokenized rows of one or several data sets, fetched by the sequences of a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset

from smollit.data.encoding.counts import column

Example = dict[str, Any]


class Examples(TorchDataset[Example]):
    """The examples of all parts of a split, in the order of the parts.

    Args:
        parts: Examples of each part.
        num_rows: Rows that each part had before bad ones were dropped: row numbers continue from part to part.
        keys: Cache key of each part.
    """

    def __init__(self, parts: Sequence[Dataset], num_rows: Sequence[int], keys: Sequence[str]) -> None:
        assert len(parts) == len(num_rows) == len(keys), "one number of rows and one key for each part"
        self.keys = list(keys)
        self.sizes = [len(part) for part in parts]
        self.rows = concatenate_datasets(list(parts)) if len(parts) > 1 else parts[0]
        self.first_examples = np.cumsum([0, *self.sizes[:-1]])
        self.first_rows = np.cumsum([0, *num_rows[:-1]])
        # A sequence of n tokens has n - 1 positions with a next token; for pairs, both responses count.
        self.lengths: list[int] = (self.column("length") - 1).tolist()
        self.reference_logps: np.ndarray | None = None

    def attach_reference_logps(self, values: np.ndarray) -> None:
        """Give each pair the log-probabilities of its responses under a reference: [N, 2], chosen and rejected."""
        if values.shape != (len(self), 2):
            raise ValueError(f"`values` must be {(len(self), 2)}, two for each pair, got {values.shape}")
        self.reference_logps = values

    def parts_sizes(self) -> list[tuple[str, int]]:
        """Key and number of examples of each part."""
        return list(zip(self.keys, self.sizes, strict=True))

    def column(self, name: str) -> np.ndarray:
        """A column of numbers."""
        return column(self.rows, name)

    def row_numbers(self) -> list[int]:
        """The row number of each example, over all parts."""
        shifts = np.repeat(self.first_rows, self.sizes)
        numbers: list[int] = (self.column("row") + shifts).tolist()
        return numbers

    def hashes_of(self, numbers: NDArray[np.int64]) -> list[str | None]:
        """The hash of the text of each of these rows; of a row with several examples, of its first."""
        name = "other_digest" if "prompt_ids" in self.rows.column_names else "digest"
        if not len(self) or name not in self.rows.column_names:
            return [None] * len(numbers)
        known, first = np.unique(self.row_numbers(), return_index=True)
        digests = self.column(name).astype(np.uint64)[first]
        return [f"{digest:016x}" for digest in digests[np.searchsorted(known, numbers)].tolist()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([[index]])[0][0]

    def __getitems__(self, sequences: list[list[int]]) -> list[list[Example]]:
        """The examples of each sequence of a batch: one, or several that are packed."""
        wanted = [index for sequence in sequences for index in sequence]
        if not wanted:
            return [[] for _ in sequences]
        columns = self.rows[wanted]
        fetched = iter([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
        return [[self._complete(next(fetched), index) for index in sequence] for sequence in sequences]

    def _complete(self, example: Example, index: int) -> Example:
        """The example with its row number over all parts, and the reference log-probabilities where they are known."""
        part = int(np.searchsorted(self.first_examples, index, side="right")) - 1
        example["row"] += int(self.first_rows[part])
        if self.reference_logps is not None:
            chosen, rejected = self.reference_logps[index].tolist()
            example |= {"reference_chosen": chosen, "reference_rejected": rejected}
        return example
