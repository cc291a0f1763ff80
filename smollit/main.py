"""The command line: python -m smollit fit --config configs/sft.yaml."""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from smollit.data import ChatDataModule
from smollit.modules import FineTuningModule
from smollit.training import SmollitTrainer
from smollit.training.config import RunConfigCallback, SmollitParser, check_nulls, read_none_as_null


class SmollitCLI(LightningCLI):
    """fit, validate, test, predict, inspect, estimate and export, all from one config."""

    def __init__(self, *args: Any, **options: Any) -> None:
        given = options.get("args")
        words = sys.argv[1:] if given is None else given
        # Each command's parser takes a noticeable part of a second: only those that are named get their arguments.
        self.named = set(words) if isinstance(words, list) else set(self.subcommands())
        super().__init__(*args, **options)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **options: Any) -> LightningArgumentParser:
        if subcommand in self.named:
            return super()._prepare_subcommand_parser(klass, subcommand, **options)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser(**options)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors name the nearest key."""
        kwargs.setdefault("dump_header", ["smollit"])
        kwargs.setdefault("prog", "smollit")
        parser = SmollitParser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="YAML file(s) with settings; later ones win.")
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, and ours."""
        fed_by_us = {"model", "datamodule"}
        return {
            "fit": fed_by_us | {"train_dataloaders", "val_dataloaders"},
            "validate": fed_by_us | {"dataloaders"},
            "test": fed_by_us | {"dataloaders"},
            "predict": fed_by_us | {"dataloaders"},
            "inspect": fed_by_us,
            "estimate": fed_by_us,
            "export": fed_by_us,
        }

    def before_instantiate_classes(self) -> None:
        """One name feeds both: the tokenizer belongs to the model, unless the user says otherwise."""
        config = self.config[self.config.subcommand]
        for name in ("model", "data"):
            check_nulls(config[name].class_path, config[name].init_args.as_dict(), name)
        data = config.data.init_args
        if "tokenizer_name" in data and data.tokenizer_name is None:
            data.tokenizer_name = config.model.init_args.model_name

    def after_instantiate_classes(self) -> None:
        """What a checkpoint remembers of the settings."""
        config = self.config[self.config.subcommand]
        kept = {name: config[name].as_dict() for name in ("model", "data")}
        self.trainer.run_state.config = kept  # type: ignore[attr-defined]  # a SmollitTrainer

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's values win over the command line: smollit does not."""


def main(args: ArgsType = None) -> SmollitCLI:
    """Parse, build and run; `args` is for tests and notebooks."""
    show_logs()
    read_none_as_null()
    try:
        return SmollitCLI(
            model_class=FineTuningModule,
            datamodule_class=ChatDataModule,
            trainer_class=SmollitTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=42,
            auto_configure_optimizers=False,  # optimizer and schedule are the model's arguments: one way
            save_config_callback=RunConfigCallback,
            args=args,
        )
    except ValueError as error:
        ours = for_the_user(error)
        if ours is None or os.environ.get("SMOLLIT_TRACEBACK"):
            raise
        raise SystemExit(f"smollit: {ours}") from error


def show_logs() -> None:
    """Our own lines on stderr, from one process; of other libraries only warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
    for name in ("smollit", "callbacks"):
        logging.getLogger(name).setLevel(logging.INFO if first else logging.ERROR)


def for_the_user(error: BaseException | None) -> ValueError | None:
    """The error that smollit itself raised with a sentence for the user, also where jsonargparse wrapped it.

    None if there is none: then the traceback is what helps.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        raised_here = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
        if isinstance(error, ValueError) and raised_here:
            return error
        error = error.__cause__ or error.__context__
    return None
