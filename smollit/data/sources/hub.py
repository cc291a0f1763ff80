"""HubSplit: a split that the library `datasets` finds, on the Hub or in a folder, and why it can't."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from datasets import (
    Dataset,
    IterableDataset,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)

from smollit.data.sources.columns import undecoded
from smollit.data.sources.files import Row
from smollit.data.sources.readers import TABLE_ROWS, rows_of
from smollit.errors import first_line, root_cause


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Disable the progress bars of `datasets` inside the block, and restore them after it."""
    were_on = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            enable_progress_bars()


class HubSplit(NamedTuple):
    """One split of a data set.

    Args:
        dataset: Hub id, or a folder in a layout that only `datasets` knows.
        split: Name of the split, without a slice.
        subset: Configuration of a data set that has several.
        revision: Branch, tag or commit.
    """

    dataset: str
    split: str
    subset: str | None = None
    revision: str | None = None

    def rows(self, row_slice: str) -> Dataset:
        """The rows of a slice."""
        return undecoded(load_dataset(self.dataset, self.subset, split=self.split + row_slice, revision=self.revision))

    def stream(self) -> Iterator[Row]:
        """The rows, one after the other.

        Raises:
            ValueError: If the split can't be loaded.
        """
        try:
            with quiet_datasets():
                rows: IterableDataset = load_dataset(
                    self.dataset, self.subset, split=self.split, revision=self.revision, streaming=True
                )
        except Exception as error:  # of many types: datasets', pyarrow's, the hub's, the network's
            raise self.error(error) from error
        rows = rows.decode(False) if rows.features else rows
        # Not `iter(rows)`: in a worker of a DataLoader that gives the rows of some files only.
        for columns in rows.iter(batch_size=TABLE_ROWS):
            yield from rows_of(columns)

    def error(self, error: Exception, row_slice: str = "") -> ValueError:
        """Why `datasets` can't load the split, in one sentence, and what to do."""
        cause = first_line(root_cause(error))
        known = re.search(r"(?:available config\w*|Available):\s*\[([^\]]*)\]", str(error))
        if known:
            wanted = f"no configuration {self.subset!r}" if self.subset else "several configurations"
            names = known[1].replace("'", "")
            return ValueError(f"`{self.dataset}` has {wanted}: set `data.subset` to one of {names}")
        if any(words in str(error) for words in ("Unknown split", "no data", "Bad split")):
            return ValueError(f"`{self.dataset}` has no split '{self.split}{row_slice}': {cause}")
        if Path(self.dataset).is_dir():
            return ValueError(
                f"the folder {self.dataset} holds no files of split {self.split!r}, and datasets can't read it: {cause}"
            )
        at = f" at revision {self.revision!r}" if self.revision else ""
        return ValueError(
            f"could not load the data set `{self.dataset}`{at}: not a local file or folder, and not found on the Hub"
            f" ({first_line(error)}). Check the name and the network, or set `data.dataset` to a local folder or file"
        )
