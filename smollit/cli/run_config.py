"""RunConfigCallback: the settings of each start, saved in the run folder."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class RunConfigCallback(SaveConfigCallback):
    """Writes config.yaml into the run folder; later starts in the same folder write config-resume-N.yaml."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the settings of a fit, once; nothing is overwritten and nothing is refused."""
        if self.already_saved or stage != "fit":
            return
        self.already_saved = True
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(free_name(folder)), skip_none=False, overwrite=False, multifile=False)


def free_name(folder: Path) -> Path:
    """config.yaml, or the first config-resume-N.yaml that does not exist yet."""
    path, number = folder / "config.yaml", 0
    while path.exists():
        number += 1
        path = folder / f"config-resume-{number}.yaml"
    return path
