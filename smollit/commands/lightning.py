"""The commands that Lightning's Trainer provides: fit, validate, test and predict."""

from dataclasses import dataclass
from pathlib import Path

from smollit.commands.command import Command, ConfiguredRun
from smollit.data.prompts import prompt_examples


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
    """Respond to the prompts of a split or file.

    Args:
        ckpt_path: Checkpoint that responds; `last` takes the newest in the run folder, `best` that of
            `trainer.keep_best`; null the model of the config.
        prompts: File whose rows have `prompt`, a text or messages, or `messages`; null takes `data.predict_split`.
    """

    ckpt_path: str | None = None
    prompts: Path | None = None

    def run(self, run: ConfiguredRun) -> None:
        """Write the responses to predictions.jsonl in the run folder."""
        if self.prompts is not None:
            run.datamodule.examples["predict"] = prompt_examples(self.prompts, run.datamodule.template)
        run.trainer.predict(run.model, datamodule=run.datamodule, return_predictions=False, ckpt_path=self.ckpt_path)
