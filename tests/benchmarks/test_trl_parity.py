"""trl_parity.py: smollit computes what TRL computes, and a difference of one token is found."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from torch.nn.utils import get_total_norm

from smollit.data import UltraFeedbackDataModule
from smollit.losses import (
    AOT,
    BCO,
    DPO,
    EXO,
    FDPO,
    IPO,
    LDDPO,
    LNDPO,
    NCA,
    SPPO,
    WPO,
    AOTUnpaired,
    APODown,
    APOZero,
    DiscoPOP,
    Hinge,
    Robust,
    Sum,
)
from smollit.modules import DPOModule

pytestmark = pytest.mark.slow
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'"
)


@pytest.fixture
def parity(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("trl_parity")


# promise: trl
# case: dpo-loss-09
# case: dpo-loss-10
# case: metrics-12
@needs_trl
@pytest.mark.parametrize(
    "options", [["--loss", "sigmoid"], ["--loss", "hinge"], ["--loss", "ipo", "--max-length", "40"]]
)
def test_smollit_computes_what_trl_computes(
    parity: ModuleType, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """TRL pads one row per response and smollit shares the prompt: all metrics agree, and rewards are not 0.

    40 tokens truncate some of the rows, on both sides at the same position.
    """
    assert parity.main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {each["name"]: each for each in result["metrics"]}
    assert result["agree"] is True
    assert max(each["difference"] for each in found.values()) < 1e-4
    assert abs(found["dpo/rewards/margins"]["smollit"]) > 0.01


# TRL's name and options of each loss, and ours.
LOSSES = [
    (["sigmoid"], {}, DPO()),
    (["robust"], {"label_smoothing": 0.1}, Robust()),
    (["exo_pair"], {"label_smoothing": 1e-3}, EXO()),
    (["hinge"], {}, Hinge()),
    (["ipo"], {}, IPO()),
    (["sigmoid_norm"], {}, LNDPO(beta=0.1)),
    (["discopop"], {}, DiscoPOP(beta=0.1)),
    (["nca_pair"], {}, NCA()),
    (["bco_pair"], {}, BCO()),
    (["sppo_hard"], {}, SPPO()),
    (["aot"], {"label_smoothing": 0.1}, AOT(label_smoothing=0.1)),
    (["aot_unpaired"], {}, AOTUnpaired()),
    (["apo_zero"], {}, APOZero()),
    (["apo_down"], {}, APODown()),
    (["sigmoid"], {"f_divergence_type": "forward_kl"}, FDPO()),
    (["sigmoid"], {"f_divergence_type": "js_divergence"}, FDPO(divergence="js")),
    (["sigmoid"], {"f_divergence_type": "alpha_divergence"}, FDPO(divergence="alpha")),
    (["sigmoid"], {"ld_alpha": 0.3}, LDDPO(alpha=0.3)),
    (["sigmoid"], {"use_weighting": True}, WPO()),
    (["sigmoid", "bco_pair"], {"loss_weights": [0.8, 0.2]}, Sum(losses=[DPO(), BCO()], weights=[0.8, 0.2])),
]


PLAIN = {
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "loss_weights": [1.0],
    "ld_alpha": None,
    "use_weighting": False,
}


# promise: trl
@needs_trl
def test_each_loss_and_its_gradient_are_those_of_trl(parity: ModuleType, tmp_path: Path) -> None:
    """4 pairs, the policy away from its reference: TRL's loss function and ours, and the norm of the gradient."""
    setting = parity.prepare(parity.parse(["--noise", "0.05"]), tmp_path)
    theirs = parity.dpo_trainer(setting, use_weighting=True)  # else the head makes nothing for it
    inputs = next(iter(theirs.get_train_dataloader()))
    data = UltraFeedbackDataModule(str(setting.pairs), **parity.data_options(setting))
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    for names, options, loss in LOSSES:
        module = DPOModule(str(setting.policy), reference_name=str(setting.model), loss=loss)
        module.configure_model()
        total, count = module.step(batch, "train")
        (total / count).backward()
        vars(theirs).update(PLAIN | options, loss_types=names)
        theirs.model.zero_grad()
        expected = theirs._compute_loss(theirs.model, inputs, False)
        expected.backward()
        assert (total / count).item() == pytest.approx(expected.item(), rel=1e-5), loss
        norms = [
            get_total_norm([weight.grad for weight in model.parameters()]) for model in (module.policy, theirs.model)
        ]
        assert norms[0].item() == pytest.approx(norms[1].item(), rel=1e-4), loss


@needs_trl
def test_one_more_loss_token_is_a_difference(
    parity: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the newline after the last response, TRL has one loss token more in each of 2 x 4 responses: exit code 1."""
    monkeypatch.setattr(parity, "TRL_CHATML", parity.TRL_CHATML.replace("loop.last and", "false and"))
    assert parity.main(["--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    [tokens] = [each for each in result["metrics"] if each["name"] == "dpo/loss_tokens"]
    assert tokens["trl"] - tokens["smollit"] == 8 and not result["agree"]


# promise: trl
@needs_trl
def test_fifty_steps_of_a_recipe_go_as_those_of_trl(
    script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe of SmolLM2's DPO on the tiny model, at a learning rate that moves it: loss, log-probabilities,
    rewards, accuracy and gradient norm of each of 50 steps, to 1e-4; and it has learned."""
    words = ["--steps", "50", "--rows", "4", "--max-length", "128", "--learning-rate", "1e-4", "--json"]
    assert script("trl_recipe").main(words) == 0, capsys.readouterr().out
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 50 and result["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert result["last_loss"] < 0.69
