"""RunConfigCallback: the settings of each start, saved in the run folder."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from smollit.training.logs.environment import note_config


class RunConfigCallback(SaveConfigCallback):
    """Writes config.yaml into the run folder; later ones with other settings config-resume-N.yaml."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the settings of the first fit."""
        if stage == "fit" and not (Path(trainer.default_root_dir) / "config.yaml").exists():
            self.save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save those of a later one, which a finished run does not reach; `replay` looks for the file of a start."""
        if trainer.is_global_zero:
            note_config(Path(trainer.default_root_dir), self.save(trainer))

    def save(self, trainer: Trainer) -> str:
        """Write a file, unless there is one that says the same, and return its name; nothing is overwritten."""
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return ""
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(with_one_learning_rate(self.config), skip_unset=False)
        same = [path for path in sorted(folder.glob("config*.yaml")) if path.read_bytes() == text.encode()]
        path = same[-1] if same else free_name(folder)
        if not same:
            path.write_text(text, encoding="utf-8")
        return path.name


def with_one_learning_rate(config: Namespace) -> Namespace:
    """The settings without the optimizer's `lr`, which `model.learning_rate` replaces."""
    config = config.clone()
    optimizer = config.model.init_args.get("optimizer")
    if optimizer is not None and "init_args" in optimizer:
        optimizer.init_args.pop("lr", None)
    return config


def free_name(folder: Path) -> Path:
    """config.yaml, or the first config-resume-N.yaml that does not exist yet."""
    path, number = folder / "config.yaml", 0
    while path.exists():
        number += 1
        path = folder / f"config-resume-{number}.yaml"
    return path
