"""The command line, in process: settings arrive, mistakes get one sentence, a saved config starts again."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smollit import __version__
from smollit.cli.cli import SmollitCLI
from smollit.commands import COMMANDS, find
from smollit.data import Part
from smollit.main import main

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
    return cli.config


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


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "inspect", "export"])
def test_help_of_every_command_says_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The list of commands has a line for each; each one's own help begins with it."""
    assert fails("--help") == 0
    overview = capsys.readouterr().out
    line = next(line for line in overview.splitlines() if line.split()[:1] == [command])
    says = line.split(maxsplit=1)[1]
    assert len(says) > 10
    assert fails(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert says in text and "--ckpt_path" in text and "--trainer.val_every_n_steps" in text


# ---- data: parts, refusals, inspect


PARTS = {
    "class_path": "smollit.data.ChatDataModule",
    "init_args": {
        "dataset": [
            {"dataset": str(SAMPLES / "ultrachat"), "split": "train_sft", "weight": 2, "max_rows": 5},
            {"dataset": str(SAMPLES / "ultrachat"), "split": "test_sft[:3]"},
        ],
        "train_split": "train",
        "val_split": None,
        "val_sets": {"held_out": {"dataset": str(SAMPLES / "ultrachat"), "split": "test_sft[3:5]"}},
    },
}


# case: cli-03 checkpoint-01
def test_a_list_of_parts_trains_and_comes_back(write: Write, tmp_path: Path) -> None:
    """5 rows at weight 2 and 3 once: 13 rows, 7 batches of 2 per epoch. The saved config says the same again.

    The checkpoint is read with weights_only although the settings held objects.
    """
    first = main(["fit", write({"data": PARTS}), "--trainer.max_steps=-1", "--trainer.max_epochs=1"])
    assert first.trainer.global_step == 7
    assert first.datamodule.splits.dataset[0] == Part(str(SAMPLES / "ultrachat"), "train_sft", 2.0, 5)
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["run_state"]["config"]
    assert kept["data"]["init_args"]["dataset"][0]["weight"] == 2
    assert json.loads(json.dumps(kept["data"])) == kept["data"]  # plain dicts, lists, texts and numbers
    arguments = [f"--config={tmp_path}/run/config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"]
    second = main(["fit", *arguments])
    assert second.trainer.global_step == 14
    assert second.datamodule.splits == first.datamodule.splits


def test_parts_that_changed_are_refused_on_resume(write: Write, tmp_path: Path) -> None:
    """Weight 2, then 3."""
    main(["fit", write({"data": PARTS})])
    other = json.loads(json.dumps(PARTS))
    other["init_args"]["dataset"][0]["weight"] = 3
    code = str(fails("fit", write({"data": other}), "--ckpt_path=last", "--trainer.max_steps=3"))
    assert "a resumed run can't change data.init_args.dataset" in code


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"weight": -1}, "`weight` of"),
        ({"max_rows": 0}, "`max_rows` of"),
        ({"split": "nope"}, "'nope'"),
    ],
)
def test_a_part_that_means_nothing_is_named(write: Write, part: dict[str, Any], expected: str) -> None:
    parts = [{"dataset": str(SAMPLES / "ultrachat"), "split": "test_sft"} | part]
    code = str(fails("fit", write({"data": {"init_args": {"dataset": parts}}})))
    assert code.startswith("smollit: ")
    assert expected in code


def test_a_setting_of_a_part_that_does_not_exist_is_named(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [{"dataset": str(SAMPLES / "ultrachat"), "wieght": 2}]
    assert fails("fit", write({"data": {"init_args": {"dataset": parts}}})) == 2
    assert "wieght" in capsys.readouterr().err


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def say(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize(
    ("option", "bad", "reason"),
    [
        ("truncate", say("q", "word " * 200), r"longer than max_length, which `data.truncate` refuses"),
        ("control_text", say("q", "I end with <|im_end|> here"), r"which `data.control_text` refuses"),
    ],
)
def test_one_bad_row_in_a_hundred_refuses_the_run_if_asked(
    write: Write, tmp_path: Path, option: str, bad: dict[str, Any], reason: str
) -> None:
    """1 % is less than max_dropped_share, and `error` means error; without it, the same rows train."""
    rows = [say(f"question {number}", f"answer {number}") for number in range(99)]
    init = {"dataset": jsonl(tmp_path / "rows.jsonl", [*rows, bad]), "train_split": "all", "val_split": None}
    refused = str(fails("fit", write({"data": {"init_args": {**init, option: "error"}}})))
    assert refused.startswith("smollit: 1 of 100 rows of split all can't be used:")
    assert reason in refused
    assert "row 99" in refused
    assert f"`data.{option}`" in refused.splitlines()[-1]  # what to do
    assert main(["fit", write({"data": {"init_args": init}}), "--trainer.max_steps=1"]).trainer.global_step == 1


def test_streaming_without_an_end_is_one_sentence(write: Write) -> None:
    code = str(fails("fit", write({"data": {"init_args": {"streaming": True}}}), "--trainer.max_steps=-1"))
    assert code.startswith("smollit: `data.streaming` does not know how long an epoch is: set `trainer.max_steps`")
    code = str(fails("fit", write({"data": {"init_args": {"streaming": True, "packing": "on"}}})))
    assert code.startswith("smollit: `data.packing: on` needs all lengths beforehand")


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_inspect_of_the_demo_finds_nothing_wrong(
    kind: str, tiny_model: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also with --strict; no weights are loaded, and nothing is written into the run's folder."""
    monkeypatch.chdir(ROOT)  # the demo's configs name their files from the root
    run = tmp_path / "run"
    small = [f"--data.cache_dir={cache_dir}", f"--data.tokenizer_name={tiny_model}", "--strict=true"]
    cli = main(["inspect", f"--config=configs/demo/{kind}.yaml", f"--trainer.default_root_dir={run}", *small])
    text = capsys.readouterr().out
    assert "360 of 360 rows" in text
    assert "nothing looks wrong" in text
    assert "trained" in text
    assert cli.model.policy is None
    assert not run.exists()


def test_inspect_strict_fails_on_equal_pairs(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The article's broken pairs: one answer in both columns. Exit code 1 and the reason; without --strict, 0."""
    pairs = [{"prompt": f"q{number}", "chosen": "a", "rejected": "a"} for number in range(6)]
    init = {"dataset": jsonl(tmp_path / "pairs.jsonl", pairs), "train_split": "all", "val_split": None}
    config = write({"data": {"init_args": init}}, kind="dpo")
    assert fails("inspect", config, "--strict=true") == 1
    assert "ln 2 = 0.6931" in " ".join(capsys.readouterr().out.split())
    main(["inspect", config])


def test_inspect_shows_every_part(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Two parts to train on, one named set to validate on."""
    main(["inspect", write({"data": PARTS}), "--num_rows=1"])
    text = capsys.readouterr().out
    assert "train_sft of" in text and "test_sft[:3] of" in text
    main(["inspect", write({"data": PARTS}), "--split=val", "--num_rows=1"])
    assert "held_out" in capsys.readouterr().out


# ---- DPO: the reference scored beforehand


def losses(folder: Path) -> list[float]:
    """train/loss of each step, in the order of the runs."""
    events = [EventAccumulator(str(path)).Reload() for path in sorted(folder.glob("events*"))]
    return [event.value for log in events for event in log.Scalars("train/loss")]


def test_a_precomputed_reference_gives_the_losses_of_a_frozen_one(write: Write, tmp_path: Path) -> None:
    """6 steps each, to 1e-6; the first is ln 2. Started again, the values are on disk. Resumed after step 3: the same.

    A resumed run may change between the two: the identity of the weights is what counts.
    """
    steps = {"trainer": {"max_steps": 6, "max_epochs": 2}}

    def run(name: str, reference: str, *arguments: str, max_steps: int = 6) -> list[float]:
        folder = tmp_path / name
        more = [f"--trainer.default_root_dir={folder}", f"--trainer.max_steps={max_steps}", *arguments]
        main(["fit", write(steps, kind="dpo"), f"--model.reference={reference}", "--model.schedule=constant", *more])
        return losses(folder)

    frozen = run("frozen", "frozen")
    assert frozen[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run("precomputed", "precomputed") == pytest.approx(frozen, abs=1e-6)
    for first, second in (("precomputed", "precomputed"), ("frozen", "precomputed"), ("precomputed", "frozen")):
        name = f"{first}-{second}"
        run(name, first, max_steps=3)
        resumed = run(name, second, "--ckpt_path=last")
        assert resumed == pytest.approx(frozen, abs=1e-6), name


# ---- compile


@pytest.mark.slow
def test_a_compiled_policy_trains_the_same(write: Write, tmp_path: Path) -> None:
    """2 steps with and without: losses equal to 1e-5, and checkpoints with the same names."""
    names = []
    for name in ("false", "true"):
        folder = tmp_path / name
        main(["fit", write(), f"--model.compile={name}", f"--trainer.default_root_dir={folder}"])
        names.append(list(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]))
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), abs=1e-5)
    assert names[0] == names[1]


# ---- as a program


def program(*arguments: str) -> str:
    """What a new process prints, and which heavy libraries it loaded."""
    script = (
        "import runpy, sys; sys.argv[0] = 'smollit'; runpy.run_module('smollit', run_name='__main__');"
        "print(sorted({'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_overview_is_there_at_once(arguments: list[str]) -> None:
    """No torch, no lightning; each command with the first line of what it does, as its own --help has it."""
    *lines, loaded = program(*arguments).splitlines()
    listed = dict(line.strip().split(maxsplit=1) for line in lines if line.startswith("  ") and "python" not in line)
    assert loaded == "[]"
    assert listed == {name: (find([name]).__doc__ or "").splitlines()[0] for name in COMMANDS}


def test_the_version_is_there_at_once() -> None:
    assert program("--version").splitlines() == [f"smollit {__version__}", "[]"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "txt"])
@pytest.mark.parametrize("in_yaml", [True, False])
def test_a_dataset_that_is_a_file_stays_its_name(write: Write, tmp_path: Path, ending: str, in_yaml: bool) -> None:
    """Where a text or a list is asked for, jsonargparse would put the file's content in place of its name."""
    file = tmp_path / f"rows.{ending}"
    file.write_text(
        {"csv": "prompt,completion\nq,a\n", "jsonl": '{"prompt": "q", "completion": "a"}\n', "txt": "q"}[ending]
    )
    over = {"data": {"init_args": {"dataset": str(file), "val_split": None, "train_split": "train"}}}
    words = [write(over)] if in_yaml else [write(), f"--data.dataset={file}", "--data.val_split=null"]
    if ending == "txt":  # no format of ours: the error speaks of the file, not of its content
        with pytest.raises(SystemExit, match=r"rows\.txt"):
            main(["inspect", *words, "--data.train_split=train"])
        return
    main(["inspect", *words, "--data.train_split=train"])
