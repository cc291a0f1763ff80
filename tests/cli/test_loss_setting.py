"""`model.loss` on the command line and in YAML: short names, defaults, what falls away, and the old spelling."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from smollit.cli import config_yaml
from smollit.cli.logger_setting import with_full_names
from smollit.cli.parser import SmollitParser
from smollit.losses import DPO, IPO, APOZero, Hinge, PreferenceLoss, SimPO, Sum
from smollit.models.adapters import LoRA
from smollit.modules import DPOModule, FineTuningModule
from smollit.schedules import WSD, Constant, Cosine, Linear

SUM = Sum(losses=[DPO(), SimPO()])
COSINE_YAML = {"schedule": {"class_path": "smollit.schedules.Cosine", "init_args": {"floor": 0.1}}}
STEP_YAML = {"schedule": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}}
DPO_YAML = {"loss": {"class_path": "smollit.losses.DPO", "init_args": {"beta": 0.05, "label_smoothing": 0.1}}}


def parse(tmp_path: Path, words: list[str], *configs: dict[str, Any]) -> Namespace:
    config_yaml.use(with_full_names)
    parser = SmollitParser(prog="smollit")
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(FineTuningModule, "model")
    for number, settings in enumerate(({"model_name": "x"}, *configs)):
        model = {"class_path": "smollit.modules.DPOModule", "init_args": settings}
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump({"model": model}))
    files = [f"--config={tmp_path / f'{number}.yaml'}" for number in range(len(configs) + 1)]
    return parser.parse_args([*files, *words])


def loss(tmp_path: Path, words: list[str], *configs: dict[str, Any]) -> PreferenceLoss:
    """The loss of the module that the settings make; the same after a round trip through a saved configuration."""
    parser = SmollitParser(prog="smollit")
    parser.add_subclass_arguments(FineTuningModule, "model")
    made = [parse(tmp_path, words, *configs)]
    saved = yaml.safe_load(parser.dump(Namespace(model=made[0].model)))
    made.append(parser.parse_object(saved))
    first, second = (parser.instantiate(Namespace(model=found.model)).model for found in made)
    assert isinstance(first, DPOModule)
    assert first.loss == second.loss
    return first.loss


# case: dpo-loss-11
@pytest.mark.parametrize(
    ("words", "configs", "expected"),
    [
        ([], [], DPO()),
        (["--model.loss.beta=0.2"], [], DPO(beta=0.2)),
        (["--model.loss=IPO", "--model.loss.beta=0.3"], [], IPO(beta=0.3)),
        ([], [{"loss": "sigmoid"}], DPO()),
        ([], [{"loss": "hinge"}], Hinge()),
        ([], [{"loss": {"class_path": "IPO", "beta": 0.3}}], IPO(beta=0.3)),
        ([], [DPO_YAML], DPO(beta=0.05, label_smoothing=0.1)),
        (["--model.loss.beta=0.2"], [DPO_YAML], DPO(beta=0.2, label_smoothing=0.1)),
        (["--model.loss=dpo"], [DPO_YAML], DPO(beta=0.05, label_smoothing=0.1)),
        (["--model.loss=ipo"], [DPO_YAML], IPO()),
        (["--model.loss=apo_zero"], [DPO_YAML], APOZero()),
        ([], [{"loss": {"class_path": "sum", "init_args": {"losses": ["dpo", {"class_path": "SimPO"}]}}}], SUM),
        ([], [DPO_YAML, {"loss": {"class_path": "Hinge", "init_args": {"beta": 2.0}}}], Hinge(beta=2.0)),
    ],
)
def test_a_loss_is_chosen_by_name_with_its_own_defaults(
    tmp_path: Path, words: list[str], configs: list[dict[str, Any]], expected: PreferenceLoss
) -> None:
    """The default loss, arguments alone, names in any case, YAML over YAML, and the command line over YAML."""
    assert loss(tmp_path, words, *configs) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "configs", "expected"),
    [
        ([], [], Linear()),
        ([], [{"schedule": "cosine"}], Cosine()),
        ([], [{"schedule": {"class_path": "Cosine", "floor": 0.1}}], Cosine(floor=0.1)),
        (["--model.schedule=Cosine", "--model.schedule.floor=0.1"], [], Cosine(floor=0.1)),
        (["--model.schedule.floor=0.2"], [{"schedule": "constant_with_warmup"}, COSINE_YAML], Cosine(floor=0.2)),
        (["--model.schedule=wsd"], [COSINE_YAML], WSD()),
        ([], [COSINE_YAML, STEP_YAML], StepLR),
        (["--model.schedule=constant"], [STEP_YAML], Constant()),
    ],
)
def test_a_schedule_is_chosen_in_the_same_way(
    tmp_path: Path, words: list[str], configs: list[dict[str, Any]], expected: Any
) -> None:
    """By name, with arguments, by class_path, and a scheduler of torch."""
    parser = SmollitParser(prog="smollit")
    parser.add_subclass_arguments(FineTuningModule, "model")
    made = parser.instantiate(Namespace(model=parse(tmp_path, words, *configs).model)).model.rates
    if isinstance(expected, type):
        made = type(made.scheduler(SGD([torch.zeros(1)])))
        assert made is expected
    else:
        assert made.schedule == expected


def test_what_falls_away_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both arguments of the YAML's DPO; nothing if the loss stays."""
    with caplog.at_level(logging.INFO, logger="smollit"):
        parse(tmp_path, ["--model.loss=sigmoid", "--model.loss.beta=0.3"], DPO_YAML)
        assert caplog.messages == []
        parse(tmp_path, ["--model.loss=IPO"], DPO_YAML)
    assert caplog.messages == [
        "`model.loss` is now IPO with its own defaults; no longer used: beta 0.05, label_smoothing 0.1"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "configs", "expected"),
    [
        ([], [{"loss": "hinge", "beta": 0.2, "label_smoothing": 0.0}], {"class_path": "Hinge", "beta": 0.2}),
        (["--model.beta=0.2"], [], {"class_path": "DPO", "beta": 0.2}),
        (["--model.loss=IPO", "--model.beta=0.2"], [], {"class_path": "IPO", "beta": 0.2}),
    ],
)
def test_the_old_spelling_is_answered_with_the_new_one(
    tmp_path: Path,
    words: list[str],
    configs: list[dict[str, Any]],
    expected: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The YAML of the error, pasted below init_args, and its words of the command line are accepted as they are."""
    with pytest.raises(SystemExit):
        parse(tmp_path, words, *configs)
    _, _, error = capsys.readouterr().err.partition("smollit: ")
    assert error.startswith("`model.beta`")
    first, *lines, last = error.rstrip().splitlines()
    assert "moved into `model.loss`" in first
    name, beta = expected["class_path"], expected["beta"]
    pasted = yaml.safe_load("\n".join(lines))
    assert pasted == {"loss": {"class_path": f"smollit.losses.{name}", "init_args": {"beta": beta}}}
    new = loss(tmp_path, last.partition(": ")[2].split())
    assert new == loss(tmp_path, [], pasted)
    assert (type(new).__name__, new.beta) == (name, beta)


@pytest.mark.parametrize(
    "word", ["--model.loss=ppo", "--model.loss.gamma=1", "--model.loss=NLL", "--model.schedule=poly"]
)
def test_what_is_no_preference_loss_is_refused(tmp_path: Path, word: str) -> None:
    """Unknown names, an unknown argument, and a loss of SFT."""
    with pytest.raises(SystemExit):
        parse(tmp_path, [word])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "LoRA", "LORA", "smollit.models.adapters.LoRA"])
def test_an_adapter_has_a_name_in_any_case(tmp_path: Path, name: str) -> None:
    """As losses and schedules have; another one from its own defaults, and an unknown one gets the nearest."""
    words = [f"--model.adapter={name}", "--model.adapter.r=4"]
    yaml_dora = {"adapter": {"class_path": "dora", "init_args": {"r": 2}}}
    for configs in ([], [yaml_dora]):
        made = SmollitParser(prog="smollit")
        made.add_subclass_arguments(FineTuningModule, "model")
        found = made.instantiate(Namespace(model=parse(tmp_path, words, *configs).model)).model
        assert found.adapter == LoRA(r=4)
    with pytest.raises(SystemExit):
        parse(tmp_path, ["--model.adapter=lorra"])


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["--model.optimizer=Adagrad"], "torch.optim.Adagrad", {"lr": 0.01, "eps": 1e-10}),
        (
            ["--model.optimizer=Adadelta", "--model.optimizer.rho=0.5"],
            "torch.optim.Adadelta",
            {"lr": 1.0, "rho": 0.5, "eps": 1e-6},
        ),
        (["--model.optimizer=Adafactor"], "torch.optim.Adafactor", {"lr": 0.01, "eps": (None, 0.001)}),
        (
            ["--model.optimizer=transformers.optimization.Adafactor", "--model.optimizer.decay_rate=-0.7"],  # no types
            "transformers.Adafactor",
            {"lr": None, "eps": (1e-30, 0.001), "decay_rate": -0.7},
        ),
        (["--model.optimizer.weight_decay=0.1"], "torch.optim.AdamW", {"lr": 0.001, "weight_decay": 0.1}),
    ],
)
def test_another_optimizer_has_its_own_defaults(
    tmp_path: Path, words: list[str], name: str, expected: dict[str, Any]
) -> None:
    """jsonargparse would keep AdamW's; `lr` was then taken for one that the user had set, and refused."""
    optimizer = parse(tmp_path, words).model.init_args.optimizer
    assert optimizer.class_path == name
    assert {key: optimizer.init_args[key] for key in expected} == expected


def test_what_is_set_of_an_optimizer_stays_with_another_class(tmp_path: Path) -> None:
    """Where it has such an argument."""
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"eps": 1e-6, "weight_decay": 0.1, "amsgrad": True}}
    found = parse(tmp_path, ["--model.optimizer=NAdam"], {"optimizer": adamw}).model.init_args.optimizer.init_args
    assert (found.lr, found.eps, found.weight_decay) == (0.002, 1e-6, 0.1)
