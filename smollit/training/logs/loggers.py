"""The loggers of a run."""

from lightning.pytorch.loggers import TensorBoardLogger


def run_logger(folder: str) -> TensorBoardLogger:
    """TensorBoard events in the run folder itself."""
    return TensorBoardLogger(save_dir=folder, name="", version="", default_hp_metric=False)
