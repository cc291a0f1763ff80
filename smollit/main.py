"""The command line: python -m smollit fit --config configs/sft.yaml."""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.trainer import Trainer
from torch.optim import AdamW

from smollit.data import ChatDataModule, UltraChatDataModule
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer
from smollit.training.config import RunConfigCallback, SmollitParser, none_to_null

SmollitParser.known = (SFTModule, DPOModule, UltraChatDataModule, SmollitTrainer, Trainer, AdamW)


class SmollitCLI(LightningCLI):
    """fit, validate, test, predict and export, all from one config."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors name the nearest key."""
        kwargs.setdefault("dump_header", ["smollit"])
        parser = SmollitParser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="YAML file(s) with settings; later ones win.")
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, and export."""
        fed_by_us = {"model", "datamodule"}
        return {
            "fit": fed_by_us | {"train_dataloaders", "val_dataloaders"},
            "validate": fed_by_us | {"dataloaders"},
            "test": fed_by_us | {"dataloaders"},
            "predict": fed_by_us | {"dataloaders"},
            "export": fed_by_us,
        }

    def before_instantiate_classes(self) -> None:
        """One name feeds both: the tokenizer belongs to the model, unless the user says otherwise."""
        config = self.config[self.config.subcommand]
        data = config.data.init_args
        if data.tokenizer_name is None:
            data.tokenizer_name = config.model.init_args.model_name

    def after_instantiate_classes(self) -> None:
        """What a checkpoint remembers of the settings."""
        config = self.config[self.config.subcommand]
        self.trainer.run_state.config = {name: config[name].as_dict() for name in ("model", "data")}

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's values win over the command line: smollit does not."""


def main(args: ArgsType = None) -> SmollitCLI:
    """Parse, build and run; `args` is for tests and notebooks."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args is None:
        sys.argv[1:] = none_to_null(sys.argv[1:])
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
            args=none_to_null(args) if isinstance(args, list) else args,
        )
    except ValueError as error:
        if not is_for_the_user(error) or os.environ.get("SMOLLIT_TRACEBACK"):
            raise
        raise SystemExit(f"smollit: {error}") from error


def is_for_the_user(error: BaseException) -> bool:
    """Whether smollit itself raised it, with a sentence for the user; else the traceback is what helps."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
