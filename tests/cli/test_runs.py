"""The command line, in process: settings arrive, a saved config starts again, commands do what their help states."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smollit.data import Part
from smollit.main import main

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "smollit" / "data" / "samples"
Write = Callable[..., str]
Fails = Callable[..., tuple[int, str]]


def saved(folder: Path, name: str = "config.yaml") -> dict[str, Any]:
    return yaml.safe_load((folder / name).read_text())


def losses(folder: Path) -> list[float]:
    """train/loss of each step, in the order of the runs."""
    events = [EventAccumulator(str(path)).Reload() for path in sorted(folder.glob("events*"))]
    return [event.value for log in events for event in log.Scalars("train/loss")]


# ---- settings


# case: cli-14
@pytest.mark.slow
@pytest.mark.parametrize("text", ["None", "null", "~"])
def test_none_reads_as_null(write: Write, text: str) -> None:
    """On the command line and in YAML, for optional texts and numbers."""
    words = [f"--model.reference_name={text}", f"--data.num_proc={text}", "--trainer.max_steps=0"]
    cli = main(["fit", write("dpo", model={"init_from": None if text == "null" else "None"}), *words])
    init = cli.config.model.init_args  # yaml.safe_dump writes a plain None
    assert (init.reference_name, init.init_from, cli.config.data.init_args.num_proc) == (None, None, None)


@pytest.mark.slow
def test_tokenizer_is_the_models_unless_given(write: Write, tmp_path: Path, tiny_model: Path) -> None:
    """null takes model_name, and stays null in config.yaml: with it and another model, that one's is taken. A given
    name is kept."""
    other = str(ROOT / "smollit" / "models" / "tiny")
    assert main(["fit", write(), "--trainer.max_steps=1"]).datamodule.tokenizer_name == str(tiny_model)
    words = [f"--config={tmp_path}/run/config.yaml", f"--model.model_name={other}", "--model.weights=random"]
    assert main(["fit", *words]).datamodule.tokenizer_name == other
    words = [write(), "--trainer.max_steps=1", f"--data.tokenizer_name={other}"]
    assert main(["fit", *words]).datamodule.tokenizer_name == other
    assert saved(tmp_path / "run", "config-resume-2.yaml")["data"]["init_args"]["tokenizer_name"] == other


# case: D2
@pytest.mark.slow
def test_a_flag_wins_wherever_it_stands(write: Write) -> None:
    """Before, between and after two configs; of configs, the later one wins."""
    configs = [write(model={"learning_rate": 1e-3}), write(model={"learning_rate": 2e-3})]
    for words in (["--model.learning_rate=4e-3", *configs], [configs[0], "--model.learning_rate", "4e-3", configs[1]]):
        assert main(["fit", *words, "--trainer.max_steps=0"]).model.learning_rate == 4e-3
    assert main(["fit", *configs, "--trainer.max_steps=0"]).model.learning_rate == 2e-3


# case: D1, cli-02
def test_yaml_as_the_docs_write_it(write: Write, fails: Fails, tmp_path: Path) -> None:
    """`packing: on` is the text `on`, 012 is 12; a repeated section is an error with file and lines."""
    extra = tmp_path / "extra.yaml"
    extra.write_text("seed_everything: 012\ndata:\n  init_args:\n    packing: on\n")
    cli = main(["fit", write(), f"--config={extra}", "--trainer.max_steps=0"])
    assert (cli.datamodule.packing, cli.config.seed_everything) == ("on", 12)
    extra.write_text("data:\n  init_args:\n    seed: 1\ndata: {}\n")
    code, said = fails("fit", write(), f"--config={extra}")
    assert code == 2 and f"{extra}" in said and "`data` is given twice, in lines 1 and 4" in said


# case: B10
@pytest.mark.slow
def test_a_tilde_is_the_home_folder(write: Write, tmp_path: Path, tiny_model: Path, monkeypatch: Any) -> None:
    """In YAML and after `=`, where no shell replaces it: of model, data, cache, run folder and checkpoint."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "rows").symlink_to(SAMPLES / "ultrachat")
    model = {"model_name": "~/model"}
    config = write(model=model, data={"dataset": "~/rows"}, trainer={"default_root_dir": "~/r"})
    main(["fit", config, "--data.cache_dir=~/cache"])
    main(["validate", write(model=model), "--ckpt_path=~/r/checkpoints/last.ckpt"])
    assert (tmp_path / "cache").is_dir() and (tmp_path / "r" / "config.yaml").is_file()
    assert not list(tmp_path.rglob("~"))


# case: A8
@pytest.mark.slow
def test_an_interval_of_0_never_logs(write: Write, tmp_path: Path) -> None:
    """As in Lightning; validation is logged all the same."""
    main(["fit", write(trainer={"log_every_n_steps": 0})])
    [log] = [EventAccumulator(str(path)).Reload() for path in (tmp_path / "run").glob("events*")]
    assert "val/loss" in log.Tags()["scalars"] and "train/loss" not in log.Tags()["scalars"]


# case: cli-13
def test_other_class_keeps_the_arguments_that_it_shares(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """max_length 77 with one data module, another one by a flag: still 77."""
    with pytest.raises(SystemExit, match="0"):
        main(["fit", write(data={"max_length": 77}), "--data=UltraFeedbackDataModule", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["class_path"].endswith("UltraFeedbackDataModule")
    assert printed["data"]["init_args"]["max_length"] == 77


# case: cli-10
@pytest.mark.slow
def test_second_config_replaces_callbacks_but_not_the_built_in_ones(write: Write, tmp_path: Path) -> None:
    """Two files with callbacks: the later list counts; `callbacks+` appends; last.ckpt is written all the same."""
    first = {"callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]}
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    for key, both in (("callbacks", False), ("callbacks+", True)):
        second = tmp_path / "second.yaml"
        second.write_text(yaml.safe_dump({"trainer": {key: [stop]}}))
        cli = main(["fit", write(trainer=first), f"--config={second}"])
        kinds = {type(callback).__name__ for callback in cli.trainer.callbacks}
        assert ("LearningRateMonitor" in kinds) == both and "EarlyStopping" in kinds
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "jsonl", "txt"])
@pytest.mark.parametrize("in_yaml", [True, False])
def test_a_dataset_that_is_a_file_stays_its_name(write: Write, tmp_path: Path, ending: str, in_yaml: bool) -> None:
    """Where a text or a list is asked for, jsonargparse would replace a file's name by its content."""
    rows = {"csv": "prompt,completion\nq,a\n", "jsonl": '{"prompt": "q", "completion": "a"}\n', "txt": "q"}
    file = tmp_path / f"rows.{ending}"
    file.write_text(rows[ending])
    options = {"dataset": str(file), "val_split": None, "train_split": "train"}
    flags = [] if in_yaml else [f"--data.{name}={'null' if text is None else text}" for name, text in options.items()]
    words = ["inspect", write(data=options) if in_yaml else write(), *flags]
    if ending == "txt":  # no format of ours: the error speaks of the file, not of its content
        with pytest.raises(SystemExit, match=r"rows\.txt"):
            main(words)
    else:
        main(words)


# ---- runs that start again


# case: cli-03
@pytest.mark.slow
def test_saved_config_starts_the_same_run(write: Write, tmp_path: Path) -> None:
    """lr 1e-5 and length 99 come back as they were, a Timer too, and so does the first loss."""
    timer = ["--trainer.callbacks+=lightning.pytorch.callbacks.Timer", "--trainer.callbacks.duration=00:01:00:00"]
    words = ["--model.learning_rate=1e-5", "--data.max_length=99", "--trainer.max_steps=1", *timer]
    first = main(["fit", write(), *words])
    second = main(["fit", f"--config={tmp_path}/run/config.yaml"])
    assert second.model.learning_rate == 1e-5 and second.datamodule.max_length == 99
    assert {**second.config.as_dict(), "config": None} == {**first.config.as_dict(), "config": None}
    assert len(set(losses(tmp_path / "run"))) == 1


# case: cli-05 cli-08
@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_resume_with_the_saved_config_in_the_same_folder(write: Write, tmp_path: Path, kind: str) -> None:
    """Twice from scratch, then resumed from the saved config: steps 2, 2, 3; what the second has is written already."""
    assert main(["fit", write(kind)]).trainer.global_step == 2
    assert main(["fit", write(kind)]).trainer.global_step == 2
    words = [f"--config={tmp_path}/run/config.yaml", "--ckpt_path=last", "--trainer.max_steps=3"]
    assert main(["fit", *words]).trainer.global_step == 3
    configs = {path.name for path in (tmp_path / "run").glob("config*.yaml")}
    assert configs == {"config.yaml", "config-resume-1.yaml"}


# case: cli-02
@pytest.mark.slow
def test_command_line_wins_over_the_checkpoint(write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trained with 1e-5, resumed with 7e-4: the module and the optimizer have 7e-4, and the change is logged."""
    main(["fit", write(model={"learning_rate": 1e-5, "schedule": "constant", "decay_all": True})])
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    words = [f"--ckpt_path={path}", "--model.learning_rate=7e-4", "--trainer.max_steps=3"]
    words += ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.weight_decay=0.25"]
    cli = main(["fit", f"--config={tmp_path}/run/config.yaml", *words])
    assert cli.model.learning_rate == 7e-4
    group = cli.trainer.optimizers[0].param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(7e-4), 0.25)
    assert "`model.learning_rate` (1e-05 -> 0.0007)" in caplog.text


# case: cli-02, checkpoint-09
@pytest.mark.slow
def test_what_a_run_can_not_resume_from_is_refused(write: Write, fails: Fails, tmp_path: Path) -> None:
    """Another template changes what tokens mean, other weights of parts what rows come; a file without optimizer."""
    cli = main(["fit", write(data=PARTS)])
    resume = ["--ckpt_path=last", "--trainer.max_steps=3"]
    _, said = fails("fit", write(data=PARTS), *resume, "--data.chat_template=chatml")
    assert "`data.chat_template` ('auto' -> 'chatml')" in said and "force_resume" in said
    other = json.loads(json.dumps(PARTS))
    other["init_args"]["dataset"][0]["weight"] = 3
    assert "resumed run" in fails("fit", write(data=other), *resume)[1]
    cli.trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert "model.init_from" in fails("fit", write(data=PARTS), f"--ckpt_path={tmp_path}/weights.ckpt")[1]


@pytest.mark.slow
def test_finished_run_started_again_ends_well(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """All steps are done: no step is made, one line logs it, and nothing is raised."""
    main(["fit", write()])
    assert main(["fit", write(), "--ckpt_path=last"]).trainer.global_step == 2
    assert "nothing to do" in caplog.text


# ---- commands


# case: cli-11
@pytest.mark.slow
def test_max_steps_are_updates(write: Write) -> None:
    """max_steps 3 with accumulation 2: 3 updates, after 3 x 2 micro-batches of 2 rows: all 12 rows."""
    cli = main(["fit", write(), "--trainer.max_steps=3", "--trainer.accumulate_grad_batches=2"])
    assert cli.trainer.global_step == 3
    assert cli.trainer.fit_loop.epoch_loop.batch_progress.total.completed == 6


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "test"])
def test_validate_and_test_measure_a_checkpoint(
    write: Write, fails: Fails, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metrics are printed; `last` without a checkpoint is one sentence."""
    assert "there is no `last` checkpoint" in fails(command, write(), "--ckpt_path=last")[1]
    main(["fit", write()])
    main([command, write(), "--ckpt_path=last"])
    assert {"validate": "val/loss", "test": "test/loss"}[command] in capsys.readouterr().out


def test_predict_answers_every_prompt(write: Write, tmp_path: Path) -> None:
    """4 validation rows -> 4 lines in the run folder."""
    main(["predict", write(), "--model.max_new_tokens=2"])
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_saved_config_serves_every_command(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """config.yaml of a fit, with its `ckpt_path`; a strategy that this machine lacks stops no command of the CPU."""
    main(["fit", write(ckpt_path="last")])
    config = f"--config={tmp_path}/run/config.yaml"
    for command in ("validate", "test", "predict", "estimate"):
        main([command, config, "--model.max_new_tokens=1"])
    for command in ("inspect", "export"):
        main([command, config, "--trainer.strategy=fsdp", "--trainer.accelerator=cuda"])
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    assert "12 of 12 rows" in capsys.readouterr().out


# ---- parts of the data, rows that stop a run

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
@pytest.mark.slow
def test_a_list_of_parts_trains_and_comes_back(write: Write, tmp_path: Path) -> None:
    """5 rows at weight 2 and 3 once: 13 rows, 7 batches of 2 per epoch. The saved config gives the same again.

    The checkpoint is read with weights_only although the settings held objects.
    """
    first = main(["fit", write(data=PARTS), "--trainer.max_steps=-1", "--trainer.max_epochs=1"])
    assert first.trainer.global_step == 7
    assert first.datamodule.splits.dataset[0] == Part(str(SAMPLES / "ultrachat"), "train_sft", 2.0, 5)
    torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    second = main(["fit", f"--config={tmp_path}/run/config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert second.trainer.global_step == 14
    assert second.datamodule.splits == first.datamodule.splits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "bad", "reason"),
    [
        ("truncate", "word " * 200, r"longer than max_length, which `data.truncate` refuses"),
        ("control_text", "I end with <|im_end|> here", r"which `data.control_text` refuses"),
    ],
)
def test_one_bad_row_in_a_hundred_refuses_the_run_if_asked(
    write: Write, fails: Fails, tmp_path: Path, option: str, bad: str, reason: str
) -> None:
    """1 % is less than max_dropped_share, and `error` means error; without it, the same rows train."""
    rows = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(99)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "q", "completion": bad}]))
    options = {"dataset": str(file), "train_split": "all", "val_split": None}
    said = fails("fit", write(data={**options, option: "error"}))[1]
    assert said.startswith("smollit: 1 of 100 rows of split all can't be used:")
    assert reason in said and "row 99" in said
    assert f"`data.{option}`" in said.splitlines()[-1]  # what to do
    assert main(["fit", write(data=options), "--trainer.max_steps=1"]).trainer.global_step == 1


# ---- the policy and its reference


@pytest.mark.slow
def test_a_precomputed_reference_gives_the_losses_of_a_frozen_one(write: Write, tmp_path: Path) -> None:
    """6 steps each, to 1e-6; the first is ln 2. Started again, the values are on disk. Resumed after step 3: the same.

    A resumed run may change between the two: the identity of the weights is what counts.
    """

    def run(name: str, reference: str, *words: str, max_steps: int = 6) -> list[float]:
        more = [f"--trainer.default_root_dir={tmp_path / name}", f"--trainer.max_steps={max_steps}", *words]
        main(["fit", write("dpo", model={"reference": reference, "schedule": "constant"}), *more])
        return losses(tmp_path / name)

    frozen = run("frozen", "frozen")
    assert frozen[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run("precomputed", "precomputed") == pytest.approx(frozen, abs=1e-6)
    for first, second in (("precomputed", "precomputed"), ("frozen", "precomputed"), ("precomputed", "frozen")):
        name = f"{first}-{second}"
        run(name, first, max_steps=3)
        assert run(name, second, "--ckpt_path=last") == pytest.approx(frozen, abs=1e-6), name


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
