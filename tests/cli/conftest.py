"""Small configs, and commands that fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from smollit.main import main

SAMPLES = Path(__file__).parents[2] / "smollit" / "data" / "samples"
KINDS = {
    "sft": ("SFTModule", "UltraChatDataModule", "ultrachat", "sft"),
    "dpo": ("DPOModule", "UltraFeedbackDataModule", "ultrafeedback", "prefs"),
}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, dict by dict."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return merged


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path, cache_dir: Path) -> Callable[..., str]:
    """write(model={...}, data={...}, trainer={...}) gives --config=<a small YAML>; the run's folder is tmp_path/run.

    Settings of model and data are init_args; another top-level key stands as it is. 12 rows, batches of 2, 2 steps.
    """

    def config(kind: str = "sft", **over: Any) -> str:
        module, data, folder, split = KINDS[kind]
        base: dict[str, Any] = {
            "model": {"class_path": f"smollit.modules.{module}", "init_args": {"model_name": str(tiny_model)}},
            "data": {
                "class_path": f"smollit.data.{data}",
                "init_args": {
                    "dataset": str(SAMPLES / folder),
                    "train_split": f"train_{split}[:12]",
                    "val_split": f"test_{split}[:4]",
                    "max_length": 128,
                    "train_batch_size": 2,
                    "cache_dir": str(cache_dir),
                },
            },
            "trainer": {
                "default_root_dir": str(tmp_path / "run"),
                "max_steps": 2,
                "val_every_n_steps": 1,
                "log_every_n_steps": 1,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "num_sanity_val_steps": 0,
            },
        }
        for name in ("model", "data"):
            if name in over and "class_path" not in over[name]:
                over[name] = {"init_args": over[name]}
        path = tmp_path / f"config-{len(list(tmp_path.glob('config-*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump(merge(base, over)))
        return f"--config={path}"

    return config


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """fails(*words) runs a command that ends by SystemExit: its exit code, and its last words."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(words)
        code, said = stopped.value.code, capsys.readouterr().err
        return (1, code) if isinstance(code, str) else (int(code or 0), said)  # Python prints a text, and exits with 1

    return run
