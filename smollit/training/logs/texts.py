"""Texts for the loggers that take them."""

from collections.abc import Sequence

from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger


def log_texts(loggers: Sequence[Logger], name: str, texts: Sequence[str], step: int) -> None:
    """Send Markdown to TensorBoard, W&B, MLflow and Comet; other loggers take numbers only.

    Args:
        loggers: The loggers of the run.
        name: Name of the texts.
        texts: One or several, which are numbered.
        step: Number of optimizer steps so far.
    """
    names = [f"{name}/{number}" for number in range(len(texts))] if len(texts) > 1 else [name]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            rows = [[str(step), *row] for row in zip(names, texts, strict=True)]
            logger.log_text(name, columns=["step", "name", "text"], data=rows, step=step)
            continue
        for key, text in zip(names, texts, strict=True):
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(key, text, step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_text(logger.run_id, text, f"{key}/step-{step:07d}.md")
            elif isinstance(logger, CometLogger):
                logger.experiment.log_text(text, step=step, metadata={"name": key})
