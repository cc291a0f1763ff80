"""The command line, in process: settings arrive, mistakes get one sentence, a saved config starts again."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from smollit.main import SmollitCLI, main

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "smollit" / "data" / "samples"
Write = Callable[..., str]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, dict by dict."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return merged


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path, cache_dir: Path) -> Write:
    """write({"model": {...}}) gives --config=<a small YAML with these settings>; the run's folder is tmp_path/run."""

    def config(over: dict[str, Any] | None = None, kind: str = "sft") -> str:
        modules = {"sft": ("SFTModule", "UltraChatDataModule"), "dpo": ("DPOModule", "UltraFeedbackDataModule")}
        module, data = modules[kind]
        split = {"sft": "sft", "dpo": "prefs"}[kind]
        base = {
            "model": {
                "class_path": f"smollit.modules.{module}",
                "init_args": {"model_name": str(tiny_model), "learning_rate": 1e-3},
            },
            "data": {
                "class_path": f"smollit.data.{data}",
                "init_args": {
                    "dataset": str(SAMPLES / {"sft": "ultrachat", "dpo": "ultrafeedback"}[kind]),
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
        path = tmp_path / f"config-{len(list(tmp_path.glob('config-*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump(merge(base, over or {})))
        return f"--config={path}"

    return config


def fails(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code


def settings(cli: SmollitCLI) -> Any:
    return cli.config[cli.config.subcommand]


def saved(folder: Path, name: str = "config.yaml") -> dict[str, Any]:
    return yaml.safe_load((folder / name).read_text())


# case: cli-04
@pytest.mark.parametrize(
    ("over", "arguments", "expected"),
    [
        (
            {},
            ["--model.lerning_rate=1"],
            "`model.lerning_rate`: there is no such setting. Did you mean `learning_rate`?",
        ),
        ({"model": {"init_args": {"lerning_rate": 1}}}, [], "`model.lerning_rate`"),
        (
            {
                "model": {
                    "init_args": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"wieght_decay": 0}}}
                }
            },
            [],
            "`model.optimizer.wieght_decay`: there is no such setting. Did you mean `weight_decay`?",
        ),
        (
            {"data": {"init_args": {"max_lenght": 9}}},
            [],
            "`data.max_lenght`: there is no such setting. Did you mean `max_length`?",
        ),
        (
            {"trainer": {"max_stepz": 1}},
            [],
            "`trainer.max_stepz`: there is no such setting. Did you mean `trainer.max_steps`?",
        ),
        (
            {"trainr": {"max_steps": 1}},
            [],
            "`trainr.max_steps`: there is no such setting. Did you mean `trainer.max_steps`?",
        ),
        (
            {},
            ["--trainer.presision=64"],
            "`trainer.presision`: there is no such setting. Did you mean `trainer.precision`?",
        ),
        ({"ckpt_pth": "last"}, [], "`ckpt_pth`: there is no such setting. Did you mean `ckpt_path`?"),
        (
            {
                "trainer": {
                    "callbacks": [
                        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitr": "x"}}
                    ]
                }
            },
            [],
            "`trainer.callbacks.monitr`: there is no such setting. Did you mean `monitor`?",
        ),
    ],
)
def test_unknown_key_exits_2_with_the_key_and_the_nearest_name(
    write: Write, capsys: pytest.CaptureFixture[str], over: dict[str, Any], arguments: list[str], expected: str
) -> None:
    """A typo anywhere in a config or on the command line; the answer is short enough to be seen."""
    assert fails("fit", write(over), *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) < 12


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"trainer": {"max_steps": "three"}}, "three"),
        ({"data": {"init_args": {"max_length": 1.5}}}, "1.5"),
        ({"model": {"init_args": {"schedule": "cosin"}}}, "cosin"),
        ({"model": {"class_path": "smollit.modules.SFTModul"}}, "SFTModul"),
        ({"trainer": {"callbacks": [{"class_path": "callbacks.Nope"}]}}, "Nope"),
    ],
)
def test_wrong_type_exits_2_and_names_the_value(
    write: Write, capsys: pytest.CaptureFixture[str], over: dict[str, Any], expected: str
) -> None:
    """What came is in the message."""
    assert fails("fit", write(over)) == 2
    assert expected in capsys.readouterr().err


def test_missing_or_malformed_config_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No such file; a file that is not YAML."""
    assert fails("fit", f"--config={tmp_path}/nope.yaml") == 2
    assert f"{tmp_path}/nope.yaml" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("model: [1\n")
    assert fails("fit", f"--config={tmp_path}/broken.yaml") == 2
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.learning_rate=-1"], "smollit: `model.learning_rate` must be above 0, got -1.0"),
        (["--data.max_length=0"], "smollit: `data.max_length` must be at least 1, got 0"),
        (["--data.max_length=None"], "smollit: `data.max_length` can't be null: expected int"),
        (["--trainer.val_every_n_steps=0"], "smollit: `trainer.val_every_n_steps` must be at least 1, got 0"),
        (["--data.dataset=/nope"], "smollit: `data.dataset` is '/nope'"),
        (["--ckpt_path=/nope.ckpt"], "smollit: `ckpt_path` is /nope.ckpt, and there is no such file"),
    ],
)
def test_our_own_errors_are_one_sentence(write: Write, arguments: list[str], expected: str) -> None:
    """While classes are built, or later: `smollit: ...`, no traceback, exit code 1."""
    code = fails("fit", write(), *arguments)
    assert isinstance(code, str)  # Python prints it, and exits with 1
    assert code.startswith(expected)
    assert "Traceback" not in code and "Union" not in code


def test_other_errors_keep_their_traceback(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that is not the user's is raised as it is; so are ours, when SMOLLIT_TRACEBACK asks for it."""

    def fault(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("fault")

    with monkeypatch.context() as patch:
        patch.setattr("smollit.training.SmollitTrainer.fit", fault)
        with pytest.raises(ZeroDivisionError):
            main(["fit", write()])
    monkeypatch.setenv("SMOLLIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="learning_rate"):
        main(["fit", write(), "--model.learning_rate=-1"])


# case: cli-14
@pytest.mark.parametrize("text", ["None", "null", "~"])
def test_none_reads_as_null(write: Write, text: str) -> None:
    """On the command line and in YAML, for optional texts and numbers."""
    arguments = [f"--model.reference_name={text}", f"--data.num_proc={text}"]
    over = {"model": {"init_args": {"init_from": None if text == "null" else "None"}}}  # safe_dump: a plain None
    cli = main(["fit", write(over, kind="dpo"), *arguments, "--trainer.max_steps=0"])
    init = settings(cli).model.init_args
    assert (init.reference_name, init.init_from, settings(cli).data.init_args.num_proc) == (None, None, None)
    assert cli.model.reference_name == cli.model.model_name


def test_tokenizer_is_the_models_unless_given(write: Write, tmp_path: Path, tiny_model: Path) -> None:
    """null takes model_name, in the data module and in config.yaml; a given one is kept in both."""
    cli = main(["fit", write(), "--trainer.max_steps=1"])
    assert cli.datamodule.tokenizer_name == str(tiny_model)
    assert saved(tmp_path / "run")["data"]["init_args"]["tokenizer_name"] == str(tiny_model)
    own = str(ROOT / "smollit" / "models" / "tiny")
    cli = main(["fit", write(), f"--data.tokenizer_name={own}", "--trainer.max_steps=1"])
    assert cli.datamodule.tokenizer_name == own
    assert saved(tmp_path / "run", "config-resume-1.yaml")["data"]["init_args"]["tokenizer_name"] == own


# case: cli-03
def test_saved_config_starts_the_same_run(write: Write, tmp_path: Path) -> None:
    """lr 1e-5 and length 99 come back as they were, and so does the first loss."""
    first = main(["fit", write(), "--model.learning_rate=1e-5", "--data.max_length=99", "--trainer.max_steps=1"])
    second = main(["fit", f"--config={tmp_path}/run/config.yaml"])
    assert second.model.learning_rate == 1e-5 and second.datamodule.max_length == 99
    assert settings(second).as_dict() == {**settings(first).as_dict(), "config": settings(second).as_dict()["config"]}
    name = "train/loss"
    assert second.trainer.callback_metrics[name] == first.trainer.callback_metrics[name]


# case: cli-05 cli-08
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_resume_with_the_saved_config_in_the_same_folder(write: Write, tmp_path: Path, kind: str) -> None:
    """Twice from scratch, then resumed from the saved config: no refusal, steps 2, 2, 3, and all three configs kept."""
    assert main(["fit", write(kind=kind)]).trainer.global_step == 2
    assert main(["fit", write(kind=kind)]).trainer.global_step == 2
    arguments = [f"--config={tmp_path}/run/config.yaml", "--ckpt_path=last", "--trainer.max_steps=3"]
    assert main(["fit", *arguments]).trainer.global_step == 3
    configs = {path.name for path in (tmp_path / "run").glob("config*.yaml")}
    assert configs == {"config.yaml", "config-resume-1.yaml", "config-resume-2.yaml"}


# case: cli-02
def test_command_line_wins_over_the_checkpoint(write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trained with 1e-5, resumed with 7e-4: the module and the optimizer's steps have 7e-4, and the change is told."""
    main(["fit", write({"model": {"init_args": {"learning_rate": 1e-5, "schedule": "constant"}}})])
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    arguments = [f"--ckpt_path={path}", "--model.learning_rate=7e-4", "--trainer.max_steps=3"]
    arguments += ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.weight_decay=0.25"]
    cli = main(["fit", f"--config={tmp_path}/run/config.yaml", *arguments])
    assert cli.model.learning_rate == 7e-4
    assert cli.model.used_learning_rate == pytest.approx(7e-4)
    assert cli.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.25
    assert "model.init_args.learning_rate: 1e-05 -> 0.0007" in caplog.text


# case: cli-02
def test_other_model_on_resume_is_refused(write: Write, tmp_path: Path) -> None:
    """The template changes what tokens mean: a sentence with both values and the way round."""
    main(["fit", write()])
    code = str(fails("fit", write(), "--ckpt_path=last", "--data.chat_template=chatml", "--trainer.max_steps=3"))
    assert "data.init_args.chat_template: 'auto' -> 'chatml'" in code and "force_resume" in code


# case: cli-10
def test_second_config_replaces_callbacks_but_not_the_built_in_ones(write: Write, tmp_path: Path) -> None:
    """Two files with callbacks: the later list counts; `callbacks+` appends; last.ckpt is written all the same."""
    first = {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]}}
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    for key, both in (("callbacks", False), ("callbacks+", True)):
        second = tmp_path / "second.yaml"
        second.write_text(yaml.safe_dump({"trainer": {key: [stop]}}))
        cli = main(["fit", write(first), f"--config={second}"])
        kinds = [type(callback).__name__ for callback in cli.trainer.callbacks]
        assert ("LearningRateMonitor" in kinds) == both
        assert {"EarlyStopping", "RunState", "GracefulStop", "StartSummary"} <= set(kinds)
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


# case: cli-13
def test_other_class_keeps_the_arguments_that_it_shares(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """max_length 77 with one data module, another one by a flag: still 77."""
    over = {"data": {"init_args": {"max_length": 77}}}
    assert fails("fit", write(over), "--data=UltraFeedbackDataModule", "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["class_path"].endswith("UltraFeedbackDataModule")
    assert printed["data"]["init_args"]["max_length"] == 77


# case: cli-11
def test_max_steps_are_updates(write: Write) -> None:
    """max_steps 3 with accumulation 2: 3 updates after 6 micro-batches of an epoch of 6."""
    cli = main(["fit", write(), "--trainer.max_steps=3", "--trainer.accumulate_grad_batches=2"])
    assert cli.trainer.global_step == 3
    assert cli.trainer.fit_loop.epoch_loop.batch_progress.total.completed == 6


# case: checkpoint-09
def test_weights_only_checkpoint_on_resume_is_refused(write: Write, tmp_path: Path) -> None:
    """The sentence names `model.init_from`."""
    cli = main(["fit", write()])
    cli.trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert "model.init_from" in str(fails("fit", write(), f"--ckpt_path={tmp_path}/weights.ckpt"))


def test_finished_run_started_again_ends_well(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """All steps are done: no step is made, one line says so, and nothing is raised."""
    main(["fit", write()])
    assert main(["fit", write(), "--ckpt_path=last"]).trainer.global_step == 2
    assert "nothing to do" in caplog.text


def test_validate_and_test_measure_a_checkpoint(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their figures are printed; `last` without a checkpoint is one sentence."""
    assert "there is no checkpoint" in str(fails("validate", write(), "--ckpt_path=last"))
    main(["fit", write()])
    for command in ("validate", "test"):
        main([command, write(), "--ckpt_path=last"])
        name = {"validate": "val/loss", "test": "test/loss"}[command]
        assert name in capsys.readouterr().out


def test_predict_answers_every_prompt(write: Write, tmp_path: Path) -> None:
    """4 validation rows -> 4 lines in the run's folder."""
    main(["predict", write(), "--model.max_new_tokens=2"])
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export"])
def test_help_of_every_command_says_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The list of commands has a line for each; each one's own help begins with it."""
    assert fails("--help") == 0
    overview = capsys.readouterr().out
    line = next(line for line in overview.splitlines() if line.split()[:1] == [command])
    says = line.split(maxsplit=1)[1]
    assert len(says) > 10
    assert fails(command, "--help") == 0
    text = capsys.readouterr().out
    assert says in text and "--ckpt_path" in text and "--trainer.val_every_n_steps" in text


@pytest.mark.slow
def test_module_runs_as_a_program() -> None:
    """python -m smollit --help."""
    command = [sys.executable, "-m", "smollit", "--help"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(name in output for name in ("fit", "validate", "test", "predict", "export"))
