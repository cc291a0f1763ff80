"""SmollitCLI: from the arguments of a command to a model, a data module and a trainer."""

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from smollit.cli import config_yaml
from smollit.cli.command_words import command_words
from smollit.cli.errors import building
from smollit.cli.logger_setting import complete_loggers, with_full_names, words_with_full_names
from smollit.cli.nulls import check_nulls, check_places, check_settings
from smollit.cli.parser import SmollitParser
from smollit.cli.run_config import RunConfigCallback, with_one_learning_rate
from smollit.cli.trainer_settings import (
    check_accelerator,
    check_device,
    check_trainer_settings,
)
from smollit.commands import COMMANDS
from smollit.commands.command import Command
from smollit.data import ChatDataModule
from smollit.modules import FineTuningModule
from smollit.paths import with_home
from smollit.training import SmollitTrainer
from smollit.training.checkpoints.files import FOLDER, find_checkpoint
from smollit.training.checkpoints.folder import local_folder
from smollit.training.validation import refuse_watching_nothing

SECTIONS = {
    "model": (
        FineTuningModule,
        "Model and training: `--model.help SFTModule` or `DPOModule` lists the settings",
    ),
    "data": (
        ChatDataModule,
        "Rows and batches: `--data.help UltraChatDataModule` or another lists the settings",
    ),
}


class SmollitCLI(LightningCLI):
    """One command of smollit: LightningCLI with the command's arguments besides model, data and trainer.

    Lightning looks up the commands that it knows on the Trainer. smollit's commands are classes, so all of them are
    built with `run=False`, from the same config, and run themselves.

    Args:
        name: Name of the command.
        command: Its class, whose arguments are added to the parser.
        args: The arguments after the command.
    """

    datamodule: ChatDataModule
    model: FineTuningModule

    def __init__(self, name: str, command: type[Command], args: Sequence[str]) -> None:
        config_yaml.use(with_full_names)
        self.command_class = command
        super().__init__(
            parser_class=SmollitParser,
            parser_kwargs={
                "prog": f"smollit {name}",
                "usage": f"smollit {name} --config FILE [--config FILE ...] [--SETTING VALUE ...]",
                "description": COMMANDS[name].summary,
                "dump_header": ["smollit"],
            },
            trainer_class=SmollitTrainer,
            seed_everything_default=42,
            auto_configure_optimizers=False,  # optimizer and schedule are the model's arguments
            save_config_callback=RunConfigCallback,
            args=list(args),
            run=False,
        )

    # ---- the parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The command's arguments first, then model, data and trainer."""
        self.command_arguments = parser.add_class_arguments(self.command_class, instantiate=False)
        for name, (base, title) in SECTIONS.items():
            # Not `add_subclass_arguments`: where a setting is a text or a list of parts, it would replace the name of
            # a file (`dataset: chats.csv`) by the file's content.
            parser.add_argument_group(title).add_argument(
                f"--{name}", type=base, required=True, help="Class path or name."
            )
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As Lightning's, which warns about arguments that do not come from sys.argv."""
        assert isinstance(args, list)
        flags = {f"--{field.name}" for field in fields(self.command_class) if field.type is bool}
        try:
            words = command_words(args, flags)
        except ValueError as error:
            parser.error(str(error))
        self.words = words_with_full_names(words)
        self.config = parser.parse_args(self.words)

    # ---- the objects

    def before_instantiate_classes(self) -> None:
        """Check the settings."""
        if not isinstance(self.config.trainer, Namespace):
            raise ValueError(f"`trainer`: expected settings, got {self.config.trainer}")
        for key, value in list(self.config.items()):
            self.config[key] = with_home(value)
        check_places(self.config)
        for name in SECTIONS:
            check_nulls(self.config[name].as_dict(), name)
        trainer = self.completed.trainer.as_dict()
        check_settings(SmollitTrainer, trainer, "trainer")
        check_nulls(trainer, "trainer")
        check_trainer_settings(trainer)

    @cached_property
    def completed(self) -> Namespace:
        """The settings with the model's tokenizer, and the run folder for logs, where the user names no others.

        `config`, which is saved, does not have them: they would be wrong for another model or another run folder.
        """
        config = self.config.clone()
        resumes = config.get("ckpt_path") is not None and (self.folder / FOLDER).is_dir()
        complete_loggers(config.trainer, resumes=resumes)
        data = config.data.init_args
        if "tokenizer_name" in data and data.tokenizer_name is None:
            data.tokenizer_name = config.model.init_args.model_name
        return config

    def instantiate_classes(self) -> None:
        """Make the data module, the model and the command; a trainer is made only for the commands that use one."""
        self.config_init = self.parser.instantiate_classes(self.completed)
        self.datamodule, self.model = self.config_init.data, self.config_init.model
        self.command = self.command_class(**{name: self.config_init[name] for name in self.command_arguments})

    @cached_property
    def trainer(self) -> SmollitTrainer:  # type: ignore[override]  # Lightning creates it at once and assigns it
        """The trainer, created on first use; checkpoints hold the settings of model and data."""
        with building():
            check_accelerator(str(self.config.trainer.accelerator).lower())
            trainer = self.instantiate_trainer()
            assert isinstance(trainer, SmollitTrainer)
            check_device(trainer)
            if trainer.limit_val_batches == 0 or not self.datamodule.has_validation:
                refuse_watching_nothing(trainer.callbacks)
        trainer.run_state.config |= {name: self.completed[name].as_dict() for name in SECTIONS}
        return trainer

    @property
    def folder(self) -> Path:
        """The run folder."""
        return local_folder(self.config.trainer.default_root_dir)

    def fit_settings(self, changes: Sequence[str] = ()) -> str:
        """The settings of the run as YAML, for `fit`, perhaps with changes as words of a command line."""
        config = (
            self.parser.parse_args([*self.words, *words_with_full_names(list(changes))]) if changes else self.config
        )
        config = with_one_learning_rate(config)
        for name in ("config", *self.command_arguments):
            config.pop(name, None)
        settings: str = self.parser.dump(config, skip_validation=True)
        return settings

    def find_checkpoint(self, ckpt_path: str) -> Path:
        """The file that `ckpt_path` means: a path, `last` or `best`."""
        callbacks = self.config_init.trainer.callbacks or []
        given = callbacks if isinstance(callbacks, list) else [callbacks]
        return find_checkpoint(ckpt_path, self.folder / FOLDER, given)
