"""Every YAML that ships runs, in process, with the model and the rows replaced by tiny ones."""

from pathlib import Path

import pytest
import yaml

from smollit.commands.summarize_runs import changes, sample_responses
from smollit.main import main

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "smollit" / "data" / "samples"
OVERLAYS = sorted(path.stem for path in (ROOT / "configs" / "overlays").glob("*.yaml"))
ROWS = {"sft": "ultrachat", "dpo": "ultrafeedback"}


def tiny_run(name: str, tiny_model: Path, cache_dir: Path, run: Path, steps: int = 2) -> list[str]:
    """Arguments that make a shipped config small: model, rows, precision, length of the run; nothing else."""
    settings = {
        "model.model_name": tiny_model,
        "data.dataset": SAMPLES / ROWS[name],
        "data.cache_dir": cache_dir,
        "data.max_length": 256,
        "data.train_batch_size": 4,
        "data.val_batch_size": 30,
        "data.num_workers": 0,
        "data.num_proc": 1,
        "trainer.default_root_dir": run,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.accumulate_grad_batches": 1,
        "model.num_warmup_steps": 0,
        "trainer.max_steps": steps,
        "trainer.val_every_n_steps": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.checkpoint_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
    }
    if name == "dpo":
        settings["model.reference_name"] = tiny_model
    return [f"--{key}={value}" for key, value in settings.items()]


# promise: every-config
@pytest.mark.parametrize("config", ["sft", "dpo"])
def test_shipped_config_trains_and_exports(config: str, tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """2 steps -> last.ckpt, TensorBoard events, samples of 3 prompts, and an exported folder."""
    main(["fit", f"--config={ROOT}/configs/{config}.yaml", *tiny_run(config, tiny_model, cache_dir, tmp_path)])
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "config.yaml").is_file()
    assert (tmp_path / "export" / "model.safetensors").is_file()
    assert len(sample_responses(tmp_path)) == 3
    assert {change.last_step for change in changes(tmp_path)} == {2}


# promise: every-config
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shipped_overlay_lies_over_a_base(overlay: str, tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """Each value of the overlay that the test does not replace arrives in the saved config."""
    file = ROOT / "configs" / "overlays" / f"{overlay}.yaml"
    small = tiny_run("sft", tiny_model, cache_dir, tmp_path, steps=1)
    main(["fit", f"--config={ROOT}/configs/sft.yaml", f"--config={file}", *small])
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    replaced = {argument[2:].partition("=")[0] for argument in small}
    for section, values in yaml.safe_load(file.read_text()).items():
        for key, value in values.get("init_args", values).items():
            if f"{section}.{key}" not in replaced:
                assert saved[section].get("init_args", saved[section])[key] == value
