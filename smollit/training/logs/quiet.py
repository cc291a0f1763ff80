"""Notes of Lightning that do not apply to a run of smollit are not shown."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOTES = (
    ".*does not have many workers.*",  # collating ids is cheap
    ".*LeafSpec.*",  # Lightning's own use of a deprecated torch name
    ".*using a custom batch sampler .* for prediction.*",  # smollit's gives every row once
    ".*but have no logger configured.*",  # then the metrics are only printed
    ".*your dataloader is not resumable.*",  # it is: the position is in the data module's state
    ".*Total length of `list` across ranks is zero.*",  # `val_split: null` is intended
    ".*when logging on epoch level in distributed setting.*",  # `metrics.values` has summed over the ranks already
)
ADVERTISED = ("litlogger", "litmodels")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the notes inside the block; filters and loggers are restored afterwards."""
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
