"""Notes of Lightning and torch that are wrong or of no use in a run of smollit, silenced by name while it runs."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOTES = (
    ".*does not have many workers.*",  # collating ids costs next to nothing
    ".*LeafSpec.*",  # Lightning's own use of a torch name that will go
    ".*using a custom batch sampler .* for prediction.*",  # ours gives every row once
    ".*but have no logger configured.*",  # then the metrics are only shown
    ".*your dataloader is not resumable.*",  # ours is: the position is in the data module's state
    ".*Total length of `list` across ranks is zero.*",  # `val_split: null` means it
    ".*when logging on epoch level in distributed setting.*",  # `metrics.values` has summed over the ranks already
)
ADVERTISED = ("litlogger", "litmodels")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence them inside the block; filters and loggers are as before after it."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings():
        for note in NOTES:
            warnings.filterwarnings("ignore", note)
        logger.addFilter(_is_no_advertisement)
        try:
            yield
        finally:
            logger.removeFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(name in record.getMessage() for name in ADVERTISED)
