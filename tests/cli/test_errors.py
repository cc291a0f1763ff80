"""Mistakes on the command line and in configs get one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.main import main

Write = Callable[..., str]
Fails = Callable[..., tuple[int | str | None, str]]


# case: cli-04
@pytest.mark.parametrize(
    ("over", "words", "expected"),
    [
        ({}, ["--model.lerning_rate=1"], "`model.lerning_rate`: there is no such setting. Did you mean `model.le"),
        ({"model": {"lerning_rate": 1}}, [], "`model.lerning_rate`"),
        (
            {"model": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"wieght_decay": 0}}}},
            [],
            "`model.optimizer.wieght_decay`: there is no such setting. Did you mean `model.optimizer.wei",
        ),
        ({"data": {"max_lenght": 9}}, [], "`data.max_lenght`: there is no such setting. Did you mean `data.max_len"),
        ({"data": {"dataset": [{"dataset": "a", "wieght": 2}]}}, [], "wieght"),
        ({"trainer": {"max_stepz": 1}}, [], "`trainer.max_stepz`: there is no such setting. Did you mean `trainer."),
        ({"trainr": {"max_steps": 1}}, [], "`trainr.max_steps`: there is no such setting. Did you mean `trainer."),
        ({}, ["--trainer.presision=64"], "`trainer.presision`: there is no such setting. Did you mean `trainer."),
        ({"ckpt_pth": "last"}, [], "`ckpt_pth`: there is no such setting. Did you mean `ckpt_path`?"),
        (
            {"trainer": {"callbacks": [{"class_path": "callbacks.SampleGenerations", "init_args": {"promts": []}}]}},
            [],
            "`trainer.callbacks.promts`: there is no such setting. Did you mean `trainer.callbacks.pro",
        ),
        ({"trainer": {"max_steps": "three"}}, [], "three"),
        ({"data": {"max_length": 1.5}}, [], "1.5"),
        ({"model": {"schedule": "cosin"}}, [], "cosin"),
        ({"trainer": {"callbacks": [{"class_path": "callbacks.Nope"}]}}, [], "Nope"),
        ({}, ["--model=SFTModul"], "SFTModul"),
        ({}, ["--config=/nope.yaml"], "/nope.yaml"),
        ({}, ["--model.loss=NLLL"], "`model.loss` is NLLL: expected one of"),
    ],
)  # fmt: skip
def test_a_mistake_exits_2_with_its_key_or_value(
    write: Write, fails: Fails, over: dict[str, Any], words: list[str], expected: str
) -> None:
    """An unknown key is named in full with the nearest valid one, a wrong value as it came."""
    code, said = fails("fit", write(**over), *words)
    assert code == 2 and expected in said
    assert "there is no such setting" not in expected or len(said.splitlines()) < 4  # short enough to be seen


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
        (["--config", "x.yaml", "fit"], "there is no command `--config`. The commands are fit, inspect"),
    ],
)
def test_a_command_that_does_not_exist_is_named(fails: Fails, words: list[str], expected: str) -> None:
    code, said = fails(*words)
    assert code == 2 and said.startswith(f"smollit: {expected}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.learning_rate=-1"], "smollit: `model.learning_rate` must be greater than 0, got -1.0"),
        (["--data.max_length=0"], "smollit: `data.max_length` must be at least 1, got 0"),
        (["--data.max_length=None"], "smollit: `data.max_length` can't be null: expected int"),
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
    said, _ = fails("fit", config, *(word.replace("SAMPLES", str(samples)) for word in words))
    assert isinstance(said, str)  # Python prints it, and exits with 1
    assert said.startswith("smollit: ") and expected in said
    assert "Traceback" not in said and "Union" not in said


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
