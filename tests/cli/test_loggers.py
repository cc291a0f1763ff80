"""`trainer.logger` by name: Lightning's loggers, one or several, in one run folder and as one run after a resume."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from smollit.main import main
from smollit.training.logs.table import read_table

Write = Callable[..., str]
Fails = Callable[..., tuple[int | str | None, str]]
SAMPLER = [{"class_path": "callbacks.SampleGenerations", "init_args": {"prompts": ["Hi", "Ho"], "max_new_tokens": 2}}]


class StandIn:
    """What the packages wandb and mlflow would receive."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.id, self.name, self.config = "run-7", "a name", {}
        self.info = self
        self.run_id, self.experiment_id = "run-8", "0"

    def init(self, **options: Any) -> "StandIn":
        self.inits.append(options)
        return self

    def log(self, metrics: dict[str, Any]) -> None:
        self.logged.append(metrics)

    def define_metric(self, *args: Any, **options: Any) -> None: ...

    # ---- mlflow

    def get_run(self, run_id: str) -> "StandIn":
        self.inits.append({"run_id": run_id})
        return self

    def get_experiment_by_name(self, name: str) -> None: ...

    def create_experiment(self, **options: Any) -> str:
        return "0"

    def create_run(self, **options: Any) -> "StandIn":
        self.inits.append(options)
        return self

    def log_batch(self, run_id: str, metrics: Any = (), **options: Any) -> None:
        self.logged += [{metric["key"]: metric["value"], "step": metric["step"]} for metric in metrics]

    def log_text(self, run_id: str, text: str, file: str) -> None:
        self.texts.append(file)

    def set_terminated(self, run_id: str, status: str) -> None: ...


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(content)
    return made


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Packages wandb and mlflow that write down what they receive."""
    seen = StandIn()
    modules = {
        "wandb": {"init": seen.init, "run": None, "Table": dict},
        "wandb.sdk.lib": {"RunDisabled": StandIn},
        "wandb.wandb_run": {"Run": StandIn},
        "mlflow": {"set_tracking_uri": lambda uri: None},
        "mlflow.tracking": {"MlflowClient": lambda uri: seen, "context": module("context", resolve_tags=dict)},
        "mlflow.tracking.context": {"resolve_tags": lambda tags: tags},
        "mlflow.entities": {"Metric": dict, "Param": lambda **param: param},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, name, module(name, **content))
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    return seen


# case: A6
@pytest.mark.slow
@pytest.mark.parametrize("name", ["CSVLogger", "csv"])
def test_a_csv_logger_keeps_its_rows_in_one_file(write: Write, tmp_path: Path, name: str) -> None:
    """2 steps, resumed to 4: one metrics.csv in the run folder, with steps 1 to 4 once each."""
    for steps in (2, 4):
        main(["fit", write(), "--trainer.logger", name, "--ckpt_path=last", f"--trainer.max_steps={steps}"])
    assert list((tmp_path / "run").rglob("metrics.csv")) == [tmp_path / "run" / "metrics.csv"]
    rows = read_table(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert all(row["train/loss"] and row["val/loss"] for row in rows)


# case: A6
@pytest.mark.slow
def test_a_saved_config_does_not_log_into_its_first_run(write: Write, tmp_path: Path) -> None:
    """config.yaml of a run with a CSV logger, and another run folder: the first run keeps its rows."""
    main(["fit", write(), "--trainer.logger=csv"])
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    words = [f"--config={tmp_path}/run/config.yaml", f"--trainer.default_root_dir={tmp_path}/other"]
    main(["fit", *words, "--trainer.max_steps=1"])
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    assert [row["step"] for row in read_table(tmp_path / "other" / "metrics.csv")] == ["1"]


# promise: loggers
# case: A6
@pytest.mark.slow
def test_several_loggers_and_the_same_run_after_a_resume(write: Write, tmp_path: Path, stand_in: StandIn) -> None:
    """W&B beside TensorBoard: options and folder arrive, the resumed run has the id of the first, both get the samples
    of steps 0, 1 and 2, and W&B each loss at its step."""
    config = write(trainer={"logger": ["tensorboard", {"class_path": "wandb"}], "callbacks": SAMPLER})
    words = [config, "--trainer.logger.project", "mine", "--ckpt_path=last"]
    main(["fit", *words, "--trainer.max_steps=1"])
    main(["fit", *words])
    assert [(run["project"], run["id"], run["dir"]) for run in stand_in.inits] == [
        ("mine", None, str(tmp_path / "run")),
        ("mine", "run-7", str(tmp_path / "run")),
    ]
    assert [row["trainer/global_step"] for row in stand_in.logged if "train/loss" in row] == [1, 2]
    tables = [row["samples"] for row in stand_in.logged if "samples" in row]
    assert [[line[:2] for line in table["data"]] for table in tables] == [
        [[step, "samples/0"], [step, "samples/1"]] for step in "012"
    ]
    assert list((tmp_path / "run").glob("events*"))


# case: A6
@pytest.mark.slow
def test_mlflow_gets_metrics_samples_and_its_run_id(write: Write, tmp_path: Path, stand_in: StandIn) -> None:
    """As above; MLflow keeps its files in <run folder>/mlruns."""
    words = [write(trainer={"callbacks": SAMPLER}), "--trainer.logger=mlflow", "--ckpt_path=last"]
    cli = main(["fit", *words, "--trainer.max_steps=1"])
    assert cli.trainer.loggers[0].save_dir == str(tmp_path / "run" / "mlruns")
    main(["fit", *words])
    assert stand_in.inits[-1] == {"run_id": "run-8"}
    assert [row["step"] for row in stand_in.logged if "train/loss" in row] == [1, 2]
    assert stand_in.texts == [f"about/{name}/step-0000000.md" for name in ("config", "data")] + [
        f"samples/{number}/step-000000{step}.md" for step in (0, 1, 2) for number in (0, 1)
    ]


@pytest.mark.parametrize(
    "value",
    [
        "[{class_path: csv, init_args: {name: tensorboard, flush_logs_every_n_steps: 7}}]",
        '{"class_path": "CSV", "name": "tensorboard", "flush_logs_every_n_steps": 7}',
    ],
)
def test_only_names_of_classes_are_completed(write: Write, capsys: pytest.CaptureFixture[str], value: str) -> None:
    """A value of a logger's own argument may be called as a logger is."""
    with pytest.raises(SystemExit, match="0"):
        main(["fit", write(), f"--trainer.logger={value}", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"]
    [logger] = found if isinstance(found, list) else [found]
    assert logger["class_path"].endswith(".CSVLogger") and logger["init_args"]["name"] == "tensorboard"
    assert logger["init_args"]["flush_logs_every_n_steps"] == 7


# case: A6
def test_a_missing_package_is_named(write: Write, fails: Fails) -> None:
    code, text = fails("fit", write(), "--trainer.logger", "CometLogger")
    assert "`trainer.logger`: CometLogger needs the package comet_ml" in f"{code} {text}"


# case: D6
@pytest.mark.slow
def test_the_saved_config_has_one_learning_rate(write: Write, tmp_path: Path) -> None:
    """An optimizer with an `lr` of its own by default: only `learning_rate` is written, and it is the true one."""
    config = write(model={"learning_rate": 0.02, "optimizer": {"class_path": "torch.optim.SGD"}})
    main(["fit", config, "--trainer.max_steps=1"])
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "learning_rate: 0.02" in text and " lr:" not in text


# case: B7
@pytest.mark.slow
def test_a_start_that_does_nothing_changes_no_file(write: Write, tmp_path: Path) -> None:
    """config.yaml, logs, checkpoints: all as before, and no new file."""
    words = ["fit", write(trainer={"num_sanity_val_steps": -1}), "--ckpt_path=last"]
    for _ in range(2):
        main(words)
        found = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
    main(words)
    assert found == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}
    assert set(found) == {path for path in tmp_path.rglob("*") if path.is_file()}
