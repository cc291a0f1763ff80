"""The commands that Lightning's Trainer provides: fit, validate, test and predict."""

from dataclasses import dataclass

from smollit.commands.command import Command, ConfiguredRun


@dataclass(kw_only=True)
class FitCommand(Command):
    """Train, or resume training.

    Args:
        ckpt_path: Checkpoint to resume from; `last` takes the newest in the run folder, or starts a new run if there
            is none; null starts a new run.
    """

    ckpt_path: str | None = None

    def run(self, run: ConfiguredRun) -> None:
        """Train."""
        run.trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=self.ckpt_path)


@dataclass(kw_only=True)
class MeasureCommand(Command):
    """Measure a split.

    Args:
        ckpt_path: Checkpoint to measure; `last` takes the newest in the run folder, `best` that of `trainer.keep_best`;
            null the model of the config.
        verbose: Print the metrics.
    """

    ckpt_path: str | None = None
    verbose: bool = True


@dataclass(kw_only=True)
class ValidateCommand(MeasureCommand):
    """Measure the validation split."""

    def run(self, run: ConfiguredRun) -> None:
        """Measure."""
        run.trainer.validate(run.model, datamodule=run.datamodule, ckpt_path=self.ckpt_path, verbose=self.verbose)


@dataclass(kw_only=True)
class TestCommand(MeasureCommand):
    """Measure the test split."""

    def run(self, run: ConfiguredRun) -> None:
        """Measure."""
        run.trainer.test(run.model, datamodule=run.datamodule, ckpt_path=self.ckpt_path, verbose=self.verbose)


@dataclass(kw_only=True)
class PredictCommand(Command):
    """Continue the prompts of a split.

    Args:
        ckpt_path: Checkpoint that responds; `last` takes the newest in the run folder, `best` that of
            `trainer.keep_best`; null the model of the config.
    """

    ckpt_path: str | None = None

    def run(self, run: ConfiguredRun) -> None:
        """Write the responses to predictions.jsonl in the run folder."""
        run.trainer.predict(run.model, datamodule=run.datamodule, return_predictions=False, ckpt_path=self.ckpt_path)
