"""`model.loss` as settings: names, the plain form in checkpoints, and the settings of version 0.1."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses import AOT, DPO, IPO, NLL, SPPO, APOZero, Hinge, PreferenceLoss, SimPO, Sum
from smollit.losses.settings import (
    LOSS,
    Loss,
    completion_loss,
    from_version_0_1,
    moved_settings,
    preference_loss,
    starts_at_ln_2,
    upgraded,
)


@dataclass(frozen=True, kw_only=True)
class Squared(PreferenceLoss):
    """(m - target)^2, a loss of the user's own."""

    beta: float = 1.0
    target: float = 2.0

    def formula(self, pairs: Pairs) -> Tensor:
        """(m - target)^2, [P]."""
        return (pairs.margin - self.target).square()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", DPO()),
        ("dpo", DPO()),
        ("IPO", IPO()),
        ("ipo", IPO()),
        ("hinge", Hinge()),
        ("squared", Squared()),
        ("apo_zero", APOZero()),
    ],
)
def test_names_ignore_case_and_sigmoid_is_dpo(name: str, expected: PreferenceLoss) -> None:
    """Losses of the user's own that are imported have a short name, too."""
    assert preference_loss(name) == expected


@pytest.mark.parametrize(
    "loss",
    [
        DPO(beta=0.2, label_smoothing=0.1),
        Hinge(scores="weight"),
        Squared(target=3.0),
        Sum(losses=[DPO(beta=0.2), Sum(losses=[SPPO()])], weights=[0.5, 1.0]),
    ],
)
def test_a_loss_is_plain_in_a_checkpoint_and_comes_back(loss: PreferenceLoss) -> None:
    """Through YAML and back: {class_path, init_args} of plain values; shipped losses by their short import path."""
    settings = yaml.safe_load(yaml.safe_dump(LOSS.as_settings(loss)))
    assert preference_loss(settings) == loss
    own = isinstance(loss, Squared)
    assert settings["class_path"] == (f"{__name__}.Squared" if own else f"smollit.losses.{type(loss).__name__}")


@pytest.mark.parametrize(
    ("loss", "others", "expected"),
    [
        (DPO(label_smoothing=0.1), {"reference_name": None}, True),
        (AOT(), {"reference_name": "A"}, True),
        (DPO(), {"reference_name": "B"}, False),
        (DPO(), {"init_from": "last.ckpt"}, False),
        (DPO(scores="offset"), {}, False),
        (DPO(nll_weight=1.0), {}, False),
        (SimPO(), {}, False),
        (NLL(), {}, False),
        (Squared(), {}, False),
    ],
)
def test_settings_say_where_a_run_starts(loss: Loss, others: dict[str, str | None], expected: bool) -> None:
    """At ln 2 = -log sigmoid(0), where the policy is its reference and the loss depends on the margin alone."""
    assert starts_at_ln_2({"model_name": "A", "loss": LOSS.as_settings(loss)} | others) is expected


def test_what_is_no_loss_is_refused_with_the_names() -> None:
    """An unknown name, a module that is not there, another class, and a loss of the other family."""
    with pytest.raises(ValueError, match=r"`model.loss` is ppo: expected one of AOT, .*SimPO, Squared, Sum"):
        preference_loss("ppo")
    with pytest.raises(ValueError, match=r"`model.loss` is nowhere.Loss, which can't be imported"):
        preference_loss("nowhere.Loss")
    with pytest.raises(ValueError, match=r"`model.loss` is pathlib.Path: expected"):
        preference_loss("pathlib.Path")
    with pytest.raises(ValueError, match=r"`model.loss` of DPO must be a PreferenceLoss, got NLL"):
        preference_loss(NLL())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`model.loss` of SFT must be a CompletionLoss, got DPO"):
        completion_loss("sigmoid")


def test_naming_another_loss_uses_its_own_defaults() -> None:
    """DPO with beta 0.05 and smoothing 0.1 before, nll_weight at its default. IPO: beta 0.1 again; what falls away is
    returned. The same loss again, and arguments alone, keep what was there."""
    before = {
        "class_path": "smollit.losses.DPO",
        "init_args": {"beta": 0.05, "label_smoothing": 0.1, "nll_weight": 0.0},
    }
    settings, dropped = LOSS.named("ipo", before)
    assert preference_loss(settings) == IPO()
    assert dropped == {"beta": 0.05, "label_smoothing": 0.1}
    given = {"class_path": "Squared", "init_args": {"target": 5.0}}
    assert preference_loss(LOSS.named(given, before)[0]) == Squared(beta=1.0, target=5.0)
    parts = {"class_path": "sum", "init_args": {"losses": ["apo_zero", {"class_path": "IPO"}]}}
    assert preference_loss(LOSS.named(parts, None)[0]) == Sum(losses=[APOZero(), IPO()])
    assert LOSS.named("sigmoid", before) == ({"class_path": "smollit.losses.DPO", "init_args": {}}, {})
    assert LOSS.named({"init_args": {"beta": 0.3}}, before) == ({"init_args": {"beta": 0.3}}, {})


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ({"beta": 0.2, "label_smoothing": 0.1}, DPO(beta=0.2, label_smoothing=0.1)),
        ({"beta": 0.2, "loss": "ipo", "label_smoothing": 0.0}, IPO(beta=0.2)),
        ({"loss": "hinge", "scores": "weight", "score_scale": 2.0}, Hinge(scores="weight", score_scale=2.0)),
    ],
)
def test_settings_of_version_0_1_have_a_new_spelling(old: dict[str, object], expected: PreferenceLoss) -> None:
    """The mapping, and the YAML of the error message, give the loss that the old settings meant."""
    assert preference_loss(from_version_0_1(old | {"schedule": "linear"})["loss"]) == expected
    text = moved_settings(old)
    assert preference_loss(yaml.safe_load("\n".join(text.splitlines()[1:-1]))["loss"]) == expected
    assert f"--model.loss {type(expected).__name__}" in text.splitlines()[-1]


def test_settings_of_this_version_stay_as_they_are() -> None:
    """A loss by name alone was and is valid."""
    for settings in (
        {"loss": "sigmoid", "reference": "frozen"},
        {"loss": LOSS.as_settings(IPO())},
        {"schedule": "linear"},
    ):
        assert from_version_0_1(settings) == settings


def test_the_configuration_in_an_old_checkpoint_compares_with_todays() -> None:
    """A run of version 0.1 (tests/fixtures) has the loss that the same settings have today; no settings, no change."""
    with (Path(__file__).parents[1] / "fixtures/v0_1/runs/dpo/config.yaml").open() as file:
        old = yaml.safe_load(file)
    new = upgraded(old)["model"]["init_args"]
    assert new["loss"] == LOSS.as_settings(DPO(beta=0.2, label_smoothing=0.1))
    assert not {"beta", "label_smoothing", "nll_weight", "scores", "score_scale"} & new.keys()
    assert upgraded({}) == {}
