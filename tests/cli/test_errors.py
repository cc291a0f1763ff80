"""Mistakes on the command line and in configs get one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.main import main

Write = Callable[..., str]
Fails = Callable[..., tuple[int, str]]


EARLY = "lightning.pytorch.callbacks.EarlyStopping"
SAMPLES = "callbacks.SampleGenerations"


def callback(class_path: str, **init_args: Any) -> dict[str, Any]:
    """The trainer's settings with this callback."""
    return {"trainer": {"callbacks": [{"class_path": class_path, "init_args": init_args}]}}


# case: cli-04, D3, D9
@pytest.mark.parametrize(
    ("over", "words", "expected"),
    [
        # an unknown key: the nearest of its class, in another section, or by its name in other tools
        ({}, ["--model.lerning_rate=1"], "`model.lerning_rate`: there is no such setting. Did you mean `model.learning_rate`?"),
        ({"model": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"wieght_decay": 0}}}}, [],
         "`model.optimizer.wieght_decay`: there is no such setting of AdamW. Did you mean `model.optimizer.weight_decay`?"),
        ({"data": {"dataset": [{"dataset": "a", "wieght": 2}]}}, [],
         "`data.dataset.wieght`: there is no such setting of Part. Did you mean `data.dataset.weight`?"),
        ({"trainer": {"max_stepz": 1}}, [], "`trainer.max_stepz`: there is no such setting. Did you mean `trainer.max_steps`?"),
        ({"trainr": {"max_steps": 1}}, [], "`trainr.max_steps`: there is no such setting. Did you mean `trainer.max_steps`?"),
        ({"ckpt_pth": "last"}, [], "`ckpt_pth`: there is no such setting. Did you mean `ckpt_path`?"),
        (callback(SAMPLES, promts=[]), [],
         "`trainer.callbacks.promts`: there is no such setting of SampleGenerations. Did you mean `trainer.callbacks.prompts`?"),
        ({}, ["--model.max_length=9"], "`model.max_length`: there is no such setting. Did you mean `data.max_length`?"),
        ({}, ["--lr_scheduler=cosine"], "`lr_scheduler`: there is no such setting. Did you mean `model.schedule`?"),
        ({}, ["--optimizer=AdamW"], "`optimizer`: there is no such setting. Did you mean `model.optimizer`?"),
        ({}, ["--model.lr=1"], "`model.lr`: there is no such setting. Did you mean `model.learning_rate`?"),
        ({"per_device_train_batch_size": 4}, [],
         "`per_device_train_batch_size`: there is no such setting. Did you mean `data.train_batch_size`?"),
        # a wrong value: what was expected, and what came
        ({"model": {"loss": {"class_path": "NLL", "init_args": {}}}, "trainer": {"max_steps": "three"}}, [],
         "`trainer.max_steps`: expected an integer, got 'three'"),
        ({}, ["--data.max_length=1.5"], "`data.max_length`: expected an integer, got 1.5"),
        ({"model": {"schedule": "cosin"}}, [], "`model.schedule` is cosin: expected one of Constant, Cosine,"
         " InverseSqrt, Linear, WSD, or the class_path of your own. Did you mean `Cosine`?"),
        ({"data": {"truncate": "letf-turns"}}, [], "`data.truncate`: expected one of right, left-turns, drop, error, got"
         " 'letf-turns'. Did you mean `left-turns`?"),
        ({"data": {"dataset": [{"dataset": "a", "weight": "two"}]}}, [], "`data.dataset.weight`: expected a number, got 'two'"),
        ({}, ["--data.dataset.weight=two"], "`data.dataset.weight`: expected a number, got 'two'"),
        ({}, ["--data.dataset={a: 1}"], "`data.dataset`: expected text or a list, got {'a': 1}"),
        (callback(SAMPLES, prompts=3), [], "`trainer.callbacks.prompts` of SampleGenerations: expected a list, got 3"),
        ({"data": {"revision": 1234567}}, [], "`data.revision`: expected text or null, got 1234567: put it in quotes"),
        ({"data": {"val_sets": {"a": "x.csv"}}}, [],
         "`data.val_sets`: expected settings such as {dataset: chats.jsonl} for each, got a text"),
        ({}, ["--model=mine.d/model.yaml"],
         "`model`: expected a class, got 'mine.d/model.yaml': settings in a file are given by --config"),
        ({"model": {"schedule": {"class_path": "Cosine", "floor": 0.1, "init_args": {"floor": 0}}}}, [],
         "Problems parsing config: `floor` is given twice, beside `class_path` and in `init_args`"),
        ({}, ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.patience=a"],
         "`trainer.callbacks.patience` of EarlyStopping: expected an integer, got 'a'"),
        ({}, ["--model.optimizer=AdamW", "--model.optimizer.weight_decay=x"],
         "`model.optimizer.weight_decay`: expected a number, got 'x'"),
        ({}, ["--trainer.gradient_clip_val=x"], "`trainer.gradient_clip_val`: expected an integer, a number or null, got 'x'"),
        ({}, ["--model.learning_rate"], "`--model.learning_rate` has no value: write --model.learning_rate VALUE"),
        # a class that there is not
        (callback("callbacks.Nope"), [], "`trainer.callbacks`: callbacks has no class Nope"),
        (callback("EarlyStoping"), [], "`trainer.callbacks`: there is no class EarlyStoping. Did you mean `EarlyStopping`?"),
        (callback(EARLY), [], "`trainer.callbacks`: EarlyStopping needs a value for monitor"),
        ({}, ["--model=SFTModul"], "`model`: there is no class SFTModul. Did you mean `SFTModule`?"),
        ({"model": {"class_path": "nope.X"}}, [], "`model`: there is no module nope"),
        ({"model": {"optimizer": {"class_path": "torch.nn.Linear"}}}, [],
         "`model.optimizer`: torch.nn.Linear is not a subclass of Optimizer"),
        ({}, ["--config=/nope.yaml"], "`config`: File does not exist: '/nope.yaml'"),
    ],
)  # fmt: skip
def test_a_mistake_exits_2_with_a_sentence(
    write: Write, fails: Fails, over: dict[str, Any], words: list[str], expected: str
) -> None:
    """At any depth, in YAML and on the command line: one line, with the setting in full, and where help is."""
    code, said = fails("fit", write(**over), *words)
    assert (code, said.splitlines()[0]) == (2, f"smollit: {expected}")
    assert len(said.splitlines()) == 2


# case: D3
def test_a_wrong_value_in_a_loss_is_one_line(write: Write, fails: Fails) -> None:
    for over, words in (
        ({}, ["--model.loss.beta=abc"]),
        ({"model": {"loss": {"class_path": "DPO", "init_args": {"beta": "abc"}}}}, []),
    ):
        assert (
            "smollit: `model.loss.beta`: expected a number, got 'abc'\n"
            in fails("fit", write("dpo", **over), *words)[1]
        )
    said = fails("fit", write(), "--model.loss=NLLL")[1]  # losses of other tests may be listed too
    assert "`model.loss` is NLLL: expected one of " in said and "Did you mean `NLL`?" in said


# case: A8
@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--trainer.accelerator=gpuu", "`trainer.accelerator`: expected one of auto, gpu"),
        ("--trainer.accelerator=gpuu", "Did you mean `gpu`?"),
        ("--trainer.accelerator=cuda", "`trainer.accelerator`: "),
        ("--trainer.strategy=ddpp", "`trainer.strategy`: expected one of auto, ddp, fsdp, fsdp2, got 'ddpp'. Did you mean"),
        ("--trainer.strategy=fsdp", "`trainer.strategy`: "),
        ("--trainer.devices=three", "`trainer.devices`: expected a number, a list of device numbers or auto, got 'three'"),
        ("--trainer.devices=0", "`trainer.devices`: "),
        ("--trainer.devices=[1,2]", "`trainer.devices`: "),
        ("--trainer.default_root_dir=s3://bucket/run", "`trainer.default_root_dir` is s3://bucket/run, and a run folder must be local"),
        ("--trainer.default_root_dir=$SCRATCH/run", "`trainer.default_root_dir` is $SCRATCH/run, and a config expands no variables"),
        ("--trainer.precision=16-mixd", "Did you mean `16-mixed`?"),
        ("--trainer.profiler=simpel", "`trainer.profiler`: expected one of simple, advanced, pytorch, xla, got 'simpel'"),
        ("--trainer.max_time=1:30", "`trainer.max_time`: expected days, hours, minutes and seconds, DD:HH:MM:SS, or"),
        ("--trainer.max_time=00:01:30", "`trainer.max_time`: expected days, hours, minutes and seconds, DD:HH:MM:SS, or"),
        ("--trainer.limit_val_batches=-1", "`trainer.limit_val_batches`: "),
        ("--trainer.val_check_interval=0", "`trainer.val_check_interval` must be above 0, got 0"),
        ("--trainer.val_every_n_steps=null --trainer.val_check_interval=9999", "`trainer.val_check_interval`: "),
        ("--trainer.max_epochs=-5", "`trainer.max_epochs`: "),
        ("--trainer.max_steps=-5", "`trainer.max_steps`: "),
        ("--trainer.accumulate_grad_batches=0", "`trainer.accumulate_grad_batches` must be at least 1, got 0"),
        ("--trainer=3", "`trainer`: expected settings, got 3"),
        ("--trainer.num_nodes=0", "`trainer.num_nodes` must be at least 1, got 0"),
        ("--trainer.log_every_n_steps=-1", "`trainer.log_every_n_steps` must be at least 0, got -1"),
        ("--trainer.strategy=fsdp2 --trainer.precision=16-mixed", "fsdp2 can't scale the fp16 gradients"),
    ],
)  # fmt: skip
def test_settings_that_lightning_can_not_use_exit_2_with_a_sentence(
    write: Write, fails: Fails, word: str, expected: str
) -> None:
    """Lightning would take any text, raise a bare error, or fail at the first step."""
    code, said = fails("fit", write(), *word.split())
    assert code == 2 and said.startswith("smollit: `trainer") and expected in said
    assert len(said.splitlines()) <= 2


# case: A8
@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "words", "expected"),
    [
        (callback(EARLY, monitor="val/lss"), [], "`val/lss` which is not available. Pass in or modify your `EarlyStopping`"
         " callback to use any of the following: `train/loss`"),
        (callback(EARLY, monitor="val/loss", mode="mni"), [], "`mode` can be min, max, got mni"),
        (callback(EARLY, monitor="val/loss"), ["--data.val_split=null"], "EarlyStopping watches val/loss, and there is no validation"),
        ({}, ["--data.global_batch_size=4", "--data.train_batch_size=1", "--trainer.accumulate_grad_batches=2"],
         "`data.global_batch_size` is 4, from which an accumulation of 4 follows, and `trainer.accumulate_grad_batches` is 2"),
        ({}, ["--model.optimizer=AdamW", "--model.optimizer.betas=[2,3]"], "`model.optimizer`: Invalid beta parameter at index 0: 2.0"),
    ],
)  # fmt: skip
def test_what_a_library_refuses_later_is_a_sentence_too(
    write: Write, fails: Fails, over: dict[str, Any], words: list[str], expected: str
) -> None:
    """At the first validation, when rows are prepared, or when the optimizer is made; still exit code 2, since the settings are wrong."""
    code, said = fails("fit", write(**over), *words)
    assert code == 2 and said.rstrip().splitlines()[-1].startswith("smollit: `") and expected in said


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({}, ["--model.optimizer=AdamW", "--model.optimizer.betas=[2,3]"]),
        ({"model": {"optimizer": {"class_path": "AdamW", "init_args": {"betas": [2, 3]}}}}, []),
    ],
)
def test_a_name_that_other_packages_also_have_is_torchs(
    write: Write, fails: Fails, over: dict[str, Any], words: list[str]
) -> None:
    """bitsandbytes has an AdamW too; jsonargparse looks a name up among all classes that are imported."""
    other = type("AdamW", (torch.optim.Optimizer,), {"__module__": __name__})
    code, said = fails("fit", write(**over), *words)
    assert code == 2 and "Invalid beta parameter at index 0: 2.0" in said
    del other


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        ("SyncReference", "SyncReference needs a DPOModule"),
        ("ExportHuggingFace --trainer.callbacks.ckpt_path=best", "with `ckpt_path: best` needs `trainer.keep_best`"),
    ],
)
def test_what_a_shipped_callback_refuses_is_a_sentence(
    write: Write, fails: Fails, callback: str, expected: str
) -> None:
    """Raised in the package `callbacks`, beside smollit's own."""
    code, said = fails("fit", write(), *f"--trainer.callbacks=callbacks.{callback}".split())
    assert code == 1 and said.rstrip().splitlines()[-1].startswith("smollit: ") and expected in said


# promise: with-effect
# case: D5
@pytest.mark.parametrize(
    ("kind", "words", "setting", "other"),
    [
        ("sft", ["--data.pack_length=64"], "data.pack_length", "packing"),
        ("sft", ["--data.shuffle_buffer=9"], "data.shuffle_buffer", "streaming"),
        ("sft", ["--data.streaming=true", "--data.group_by_length=true"], "data.group_by_length", "streaming"),
        ("dpo", ["--data.train_on=last"], "data.train_on", "preference pairs"),
        ("dpo", ["--model.loss.score_scale=2"], "model.loss.score_scale", "scores: ignore"),
        ("sft", ["--trainer.keep_checkpoints=3"], "trainer.keep_checkpoints", "checkpoint_every_n_steps"),
        ("sft", ["--trainer.enable_checkpointing=false", "--trainer.checkpoint_every_n_steps=1"],
         "trainer.checkpoint_every_n_steps", "enable_checkpointing"),
        ("sft", ["--trainer.enable_checkpointing=false", "--trainer.keep_best=val/loss"],
         "trainer.keep_best", "enable_checkpointing"),
        ("sft", ["--trainer.min_steps=3"], "trainer.min_steps", "max_steps"),
        ("sft", ["--trainer.gradient_clip_algorithm=norm"], "trainer.gradient_clip_algorithm", "gradient_clip_val"),
        ("sft", ["--trainer.check_val_every_n_epoch=2"], "trainer.check_val_every_n_epoch", "val_every_n_steps"),
        ("sft", ["--trainer.val_check_interval=2"], "trainer.val_check_interval", "val_every_n_steps"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(
    write: Write, fails: Fails, kind: str, words: list[str], setting: str, other: str
) -> None:
    """It names the setting, and the one that leaves it without effect."""
    code, said = fails("fit", write(kind), *words)
    assert code == 2 and f"smollit: `{setting}` has no effect " in said and other in said


def test_without_settings_the_required_ones_are_named(fails: Fails) -> None:
    code, said = fails("fit")
    assert code == 2 and "the following arguments are required: model, data" in said


def test_a_file_that_is_not_yaml_is_named_with_the_line(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "broken.yaml").write_text("model: [1\n")
    code, said = fails("fit", f"--config={tmp_path}/broken.yaml")
    assert code == 2 and "line 2" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fti"], "there is no command `fti`. Did you mean `fit`?"),
        (["--config", "x.yaml", "fit"], "there is no command `--config`. The commands are fit, sweep, inspect"),
    ],
)
def test_a_command_that_does_not_exist_is_named(fails: Fails, words: list[str], expected: str) -> None:
    code, said = fails(*words)
    assert code == 2 and said.startswith(f"smollit: {expected}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.learning_rate=-1"], "smollit: `model.learning_rate` must be greater than 0 and finite, got -1.0"),
        (["--model.dropout=2"], "smollit: `model.dropout` must be at least 0 and below 1, got 2.0"),
        (["--model.chunk_size=-1"], "smollit: `model.chunk_size` must be at least 1, got -1"),
        (["--model.temperature=.nan"], "smollit: `model.temperature` must be at least 0 and finite, got nan"),
        (
            ["--trainer.limit_train_batches=0.0"],
            "smollit: `trainer.limit_train_batches` is 0: no step would be trained",
        ),
        (["--trainer.default_root_dir="], "smollit: `trainer.default_root_dir` is empty: give a name or a path"),
        (["--model.model_name="], "smollit: `model.model_name` is empty"),
        (["--ckpt_path="], "smollit: `ckpt_path` is empty"),
        (["--seed_everything=-1"], "smollit: `seed_everything`: -1 is not in bounds"),
        (["--data.max_length=0"], "smollit: `data.max_length` must be at least 1, got 0"),
        (["--data.max_length=None"], "smollit: `data.max_length` can't be null: expected an integer"),
        (["--trainer.val_every_n_steps=0"], "smollit: `trainer.val_every_n_steps` must be at least 1, got 0"),
        (["--data.dataset=/nope"], "smollit: `data.dataset` is '/nope'"),
        (["--ckpt_path=/nope.ckpt"], "smollit: `ckpt_path` is /nope.ckpt, and there is no such file"),
        (["--data.streaming=true", "--trainer.max_steps=-1"], "smollit: `data.streaming` does not know how long"),
        (["--data.streaming=true"], "smollit: `data.packing: on` needs all lengths"),
        (["--data.dataset", "[{dataset: SAMPLES, split: test_sft, weight: -1}]"], "smollit: `weight` of"),
        (["--data.dataset", "[{dataset: SAMPLES, split: test_sft, max_rows: 0}]"], "smollit: `max_rows` of"),
        (["--data.dataset", "[{dataset: SAMPLES, split: nope}]"], "'nope'"),
    ],
)
def test_our_own_errors_are_one_sentence(write: Write, fails: Fails, words: list[str], expected: str) -> None:
    """While classes are built, or later: `smollit: ...`, no traceback, exit code 1."""
    samples = Path(__file__).parents[2] / "smollit" / "data" / "samples" / "ultrachat"
    config = write(data={"packing": "on"} if "all lengths" in expected else {})
    _, said = fails("fit", config, *(word.replace("SAMPLES", str(samples)) for word in words))
    assert isinstance(said, str)  # Python prints it, and exits with 1
    assert said.startswith("smollit: ") and expected in said
    assert "Traceback" not in said and "Union" not in said


def test_what_a_file_system_refuses_is_a_sentence(write: Write, fails: Fails, tmp_path: Path) -> None:
    """A folder stands where metrics.csv is to be written."""
    (tmp_path / "run" / "metrics.csv").mkdir(parents=True)
    code, said = fails("fit", write())
    assert code == 1 and said.startswith("smollit: ") and "Is a directory" in said and "metrics.csv" in said


class Faulty(Callback):
    """Fails at the start."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise ZeroDivisionError


def test_other_errors_keep_their_traceback(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in a user's class is raised unchanged; so are smollit's errors, when SMOLLIT_TRACEBACK is set."""
    with pytest.raises(ZeroDivisionError):
        main(["fit", write(trainer={"callbacks": [{"class_path": f"{__name__}.Faulty"}]})])
    monkeypatch.setenv("SMOLLIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="learning_rate"):
        main(["fit", write(), "--model.learning_rate=-1"])
