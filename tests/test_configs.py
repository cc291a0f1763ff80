"""Every YAML that ships runs, in process, with the model and the rows replaced by tiny ones."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from smollit.cli.cli import SmollitCLI
from smollit.commands import find
from smollit.commands.summarize_runs import changes, sample_responses
from smollit.main import main

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "smollit" / "data" / "samples"
OVERLAYS = sorted(path.stem for path in (ROOT / "configs" / "overlays").glob("*.yaml"))
RECIPES = ROOT / "configs" / "recipes"
# As published: learning rate, rows per step, epochs, tokens of a row, loss and beta, clipping, least learning rate; and
# which turns have a loss.
PUBLISHED: dict[str, tuple[object, ...]] = {
    "smollm2-135m-sft": (1e-3, 128, 2, 8192, "NLL", None, 1.0, 0.0, "all"),
    "smollm2-360m-sft": (1e-3, 128, 2, 8192, "NLL", None, 1.0, 0.0, "all"),
    "smollm2-1.7b-sft": (3e-4, 128, 2, 8192, "NLL", None, 1.0, 0.0, "all"),
    "smollm2-135m-dpo": (1e-6, 128, 2, 1024, "DPO", 0.5, 1.0, 0.0, "assistant"),
    "smollm2-360m-dpo": (1e-6, 128, 2, 1024, "DPO", 0.5, 1.0, 0.0, "assistant"),
    "smollm2-1.7b-dpo": (1e-6, 128, 3, 1024, "DPO", 0.5, 1.0, 0.0, "assistant"),
    "smollm3-apo": (1e-6, 32, 1, 24576, "APOZero", 0.05, 0.2, 0.1, "assistant"),
    "trlm-sft": (3e-4, 128, 3, 4096, "DFT", None, 1.0, 0.0, "all"),
    "trlm-apo": (1e-5, 128, 1, 2048, "APOZero", 0.1, 0.2, 0.1, "assistant"),
    "zephyr-sft": (2e-5, 128, 1, 2048, "NLL", None, 1.0, 0.0, "all"),
    "zephyr-dpo": (5e-7, 128, 1, 1024, "DPO", 0.01, 1.0, 0.0, "assistant"),
}
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


def test_the_schema_takes_what_the_parser_takes() -> None:
    """Every YAML that ships names the schema and is valid under it, by jsonschema. A misspelt setting, a wrong type and
    a setting of another class are not; a class of one's own may have settings of its own."""
    schema = json.loads((ROOT / "configs" / "schema.json").read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    validator = Draft7Validator(schema)
    for path in (ROOT / "configs").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        named = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / named).resolve() == ROOT / "configs" / "schema.json"
        assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []
    for wrong in (
        "model: {class_path: smollit.modules.SFTModule, init_args: {learning_rat: 0.1}}",
        "model: {class_path: SFTModule, init_args: {reference: frozen}}",
        "model: {init_args: {learning_rate: fast}}",
        "trainer: {max_step: 3}",
        "modle: {}",
    ):
        assert not validator.is_valid(yaml.safe_load(wrong)), wrong
    assert validator.is_valid({"model": {"class_path": "mine.Module", "init_args": {"anything": 1}}})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["expo"], {"export"}),
        (["fit", "--model.learning_rate_f"], {"--model.learning_rate_factors"}),
        (["report", "--r"], {"--rows"}),
        (["fit", "--trainer.acc"], {"--trainer.accelerator", "--trainer.accumulate_grad_batches"}),
    ],
)
def test_completion_in_bash(words: list[str], expected: set[str]) -> None:
    """The script that ships, in a real bash: the words that begin as the last one does."""
    typed = shlex.join(["smollit", *words])
    script = (
        f'. configs/completion.bash; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _smollit; echo "${{COMPREPLY[@]}}"'
    )
    found = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == expected


# promise: every-config
@pytest.mark.parametrize("config", ["sft", "dpo"])
@pytest.mark.slow
def test_shipped_config_trains_and_exports(config: str, tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """2 steps -> last.ckpt, TensorBoard events, samples of 3 prompts, and an exported folder."""
    main(["fit", f"--config={ROOT}/configs/{config}.yaml", *tiny_run(config, tiny_model, cache_dir, tmp_path)])
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "config.yaml").is_file()
    assert (tmp_path / "export" / "model.safetensors").is_file()
    assert len(sample_responses(tmp_path)) == 3
    assert {change.last_step for change in changes(tmp_path)} == {2}


# promise: every-config
@pytest.mark.slow  # the schema of the default tests has looked at each overlay alone
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shipped_overlay_lies_over_a_base(overlay: str) -> None:
    """Each value of the overlay arrives in the config of a run that can be built."""
    file = ROOT / "configs" / "overlays" / f"{overlay}.yaml"
    cli = SmollitCLI("fit", find(["fit"]), [f"--config={ROOT}/configs/sft.yaml", f"--config={file}"])  # type: ignore[arg-type]  # of a config
    built = cli.config.as_dict()
    for section, values in yaml.safe_load(file.read_text()).items():
        for key, value in values.get("init_args", values).items():
            assert built[section].get("init_args", built[section])[key] == value


# promise: every-config
@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shipped_overlay_trains(overlay: str, tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """One step on the sample rows."""
    file = ROOT / "configs" / "overlays" / f"{overlay}.yaml"
    small = tiny_run("sft", tiny_model, cache_dir, tmp_path, steps=1)
    main(["fit", f"--config={ROOT}/configs/sft.yaml", f"--config={file}", *small])
    assert (tmp_path / "export" / "model.safetensors").is_file()


# promise: every-config
@pytest.mark.slow
def test_each_recipe_has_the_published_numbers() -> None:
    """The parser takes each, and what it builds has the numbers of its source; all warm up over a tenth."""
    assert {path.stem for path in RECIPES.glob("*.yaml")} == PUBLISHED.keys()
    for name, published in PUBLISHED.items():
        file = RECIPES / f"{name}.yaml"
        assert "# Source: https://" in file.read_text() and "Published" in file.read_text(), name
        cli = SmollitCLI("fit", find(["fit"]), [f"--config={file}"])  # type: ignore[arg-type]  # of a config
        model, data, trainer = cli.model, cli.datamodule, cli.config.trainer
        loss, schedule = model.hparams["loss"], model.hparams["schedule"]
        assert published == (
            model.learning_rate,
            data.train_batch_size * trainer.accumulate_grad_batches,
            trainer.max_epochs,
            data.max_length,
            loss["class_path"].rpartition(".")[2],
            loss["init_args"].get("beta"),
            trainer.gradient_clip_val,
            schedule["init_args"]["floor"],
            data.encode_options.train_on,
        ), name
        assert model.hparams["warmup_ratio"] == 0.1 and schedule["class_path"].endswith("Cosine"), name


# promise: every-config
@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(PUBLISHED))
def test_each_recipe_trains_and_exports(recipe: str, tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """One step on the sample rows."""
    kind, split = ("sft", "train_sft") if recipe.endswith("sft") else ("dpo", "train_prefs")
    words = [word for word in tiny_run(kind, tiny_model, cache_dir, tmp_path, steps=1) if "num_warmup" not in word]
    words += [f"--data.tokenizer_name={tiny_model}", f"--data.train_split={split}[:8]", "--data.val_split=null"]
    words += ["--trainer.keep_best=null", "--data.chat_template=chatml", "--data.default_system=keep"]
    words += ["--model.warmup_ratio=0", "--data.subset=null"]  # a tenth of one step is all of it; one subset is there
    main(["fit", f"--config={RECIPES}/{recipe}.yaml", *words])
    assert (tmp_path / "export" / "model.safetensors").is_file()
