"""Random settings with random bad values: each run ends well, or in a sentence."""

import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollit.cli.parser import argument_names
from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.losses import DPO, NLL
from smollit.main import main
from smollit.modules import DPOModule, SFTModule
from smollit.training import SmollitTrainer

VALUES: list[Any] = [
    *(-1, 0, 1, 1.5, -0.5, float("nan"), float("inf"), None, True, False),
    *("", " ", "abc", "on", "1:30", "012", "-1", "None", "torch.optim.SGD", "é\u202e\x00"),
    *("/dev/null/x", "~/smollit-fuzz/x", "https://localhost:1/x"),
    *(
        [],
        {},
        [1, "a"],
        ["a"],
        {"a": 1},
        {"class_path": "Nope"},
        {"class_path": "torch.nn.Linear", "init_args": {"x": 1}},
    ),
]
# Settings whose valid values start processes, compile for minutes, or write outside of the test's folder.
LEFT_OUT = {"trainer.devices", "trainer.num_nodes", "model.compile", "trainer.default_root_dir"}
CLASSES = {
    "sft": {"model": SFTModule, "model.loss": NLL, "data": UltraChatDataModule, "trainer": SmollitTrainer},
    "dpo": {"model": DPOModule, "model.loss": DPO, "data": UltraFeedbackDataModule, "trainer": SmollitTrainer},
}


def changed(rng: random.Random, kind: str) -> tuple[str, Any]:
    """A setting, in a fifth of all cases misspelt by one character, and a value that is likely to be wrong."""
    section, known = rng.choice(list(CLASSES[kind].items()))
    names = [name for name in dict.fromkeys(argument_names(known)) if f"{section}.{name}" not in LEFT_OUT]
    name = rng.choice(names or ["x"])
    if rng.random() < 0.2:
        at = rng.randrange(len(name))
        name = name[:at] + rng.choice("xyz_") + name[at + 1 :]
    return f"{section}.{name}", rng.choice(VALUES)


def nested(setting: str, value: Any) -> dict[str, Any]:
    """A setting as a part of a config: `model.loss.beta` lies in init_args of the loss, in those of the model."""
    section, *rest = setting.split(".")
    inner: Any = value
    for key in reversed(rest):
        inner = {key: inner}
        if key != rest[0]:
            inner = {"class_path": "DPO" if section == "model" else "", "init_args": inner}
    return {section: inner}


# promise: sentences
# case: D3
@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_a_changed_config_ends_well_or_in_a_sentence(
    block: int, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """300 configs, ten blocks of 30; in YAML and on the command line; few lines, and none of Python's words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    rng, wrong = random.Random(block), []
    for _ in range(30):
        kind = rng.choice(["sft", "dpo"])
        setting, value = changed(rng, kind)
        in_yaml = rng.random() < 0.5 and "loss." not in setting
        case = f"{kind} {'YAML' if in_yaml else 'flag'} {setting}: {value!r}"
        try:
            config = write(kind, **(nested(setting, value) if in_yaml else {}))
            main(["fit", config, *([] if in_yaml else [f"--{setting}={value}"])])
        except SystemExit as stopped:
            said = stopped.code if isinstance(stopped.code, str) else capsys.readouterr().err
            if stopped.code and not is_a_sentence(said):
                wrong.append(f"{case}\n    {said[-600:]}")
        except BaseException as error:
            wrong.append(f"{case}\n    {type(error).__name__}: {str(error)[:300]}\n    {place(error)}")
        capsys.readouterr()
    assert not wrong, "\n".join(wrong)


def is_a_sentence(said: str) -> bool:
    """Whether the last words start with `smollit:`, are short, and show nothing of Python's types."""
    last = said[said.rfind("smollit: ") :]
    odd = ("Traceback", "NestedArg", "Union", "<class", "typing.", "Namespace(")
    return last.startswith("smollit: ") and len(last.splitlines()) <= 12 and not any(word in last for word in odd)


def place(error: BaseException) -> str:
    """Where it was raised."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    return " < ".join(f"{frame.filename[-40:]}:{frame.lineno}" for frame in frames[:-6:-1])
