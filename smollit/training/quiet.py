"""Notes of Lightning and torch that are wrong or of no use here, silenced by name in this one place."""

import logging
import warnings

NOTES = (
    ".*does not have many workers.*",  # collating ids costs next to nothing
    ".*LeafSpec.*",  # Lightning's own use of a torch name that will go
    ".*using a custom batch sampler .* for prediction.*",  # ours gives every row once
    ".*but have no logger configured.*",  # then the figures are only shown
    ".*your dataloader is not resumable.*",  # ours is: `data.sampler` and `training.state`
    ".*Total length of `list` across ranks is zero.*",  # `val_split: null` means it
    ".*when logging on epoch level in distributed setting.*",  # `metrics.values` has summed over the ranks already
)


def quiet() -> None:
    """Silence them; calling it again changes nothing."""
    for note in NOTES:
        warnings.filterwarnings("ignore", note)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
