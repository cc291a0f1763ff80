"""The loggers of a run."""

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from smollit.training.logs.table import use_table


def run_loggers(loggers: list[Logger], folder: str, *, by_default: bool) -> list[Logger]:
    """The loggers of a run, the table of its metrics among them; without loggers, there is no table.

    Args:
        loggers: Those of the trainer.
        folder: The run folder.
        by_default: The user asked for none: TensorBoard events go into the run folder itself.
    """
    table = CSVLogger(folder, name="", version="")
    if by_default:
        loggers = [TensorBoardLogger(folder, name="", version="", default_hp_metric=False)]
    csv_loggers = [logger for logger in loggers if isinstance(logger, CSVLogger)]
    if loggers and table.log_dir not in {logger.log_dir for logger in csv_loggers}:
        loggers, csv_loggers = [*loggers, table], [*csv_loggers, table]
    for logger in csv_loggers:
        use_table(logger)
    return loggers
