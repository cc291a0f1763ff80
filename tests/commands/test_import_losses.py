"""`import`: the loss of a config is what all settings ask for together, or they are said to have no counterpart."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from smollit.losses import AOT, BCO, CPO, DPO, EXO, FDPO, IPO, LDDPO, ORPO, WPO, Hinge, Robust, SimPO, Sum
from smollit.losses.base import PreferenceLoss
from smollit.losses.settings import LOSS
from smollit.main import main

TRL = {"model_name_or_path": "m", "dataset_name": "d", "beta": 0.2}
AXOLOTL = {"base_model": "m", "datasets": [{"path": "d"}]}
FACTORY = {"model_name_or_path": "m", "stage": "dpo"}
BOTH = {"loss_type": ["sigmoid", "bco_pair"]}
MPO = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
LD, WEIGHTS, JS = {"ld_alpha": 0.3}, {"use_weighting": True}, {"f_divergence_type": "js_divergence"}
ALPHA = {"f_divergence_type": "alpha_divergence"}
PRECOMPUTED = {"precompute_ref_log_probs": True}
B = {"beta": 0.2}


def both(weights: list[float], **options: float) -> Sum:
    """The weighted sum of DPO and BCO."""
    return Sum(losses=[DPO(beta=0.2), BCO(beta=0.2)], weights=weights, beta=0.2, **options)


# Settings, the loss, and those of the settings that have no counterpart.
CASES: list[tuple[dict[str, Any], PreferenceLoss, str]] = [
    (TRL | {"loss_type": ["sigmoid"], "loss_weights": [1.0]}, DPO(**B), ""),
    (TRL | {"loss_weights": [0.5]}, Sum(losses=[DPO(**B)], weights=[0.5], **B), ""),
    (TRL | {"loss_type": "robust"}, Robust(**B, label_smoothing=0.0), ""),  # TRL's default, not ours
    (TRL | {"loss_type": "robust", "label_smoothing": 0.2}, Robust(**B, label_smoothing=0.2), ""),
    (TRL | {"loss_type": "exo_pair", "label_smoothing": 0.0}, EXO(**B), "label_smoothing"),
    (TRL | {"loss_type": "aot", "label_smoothing": 0.2}, AOT(**B, label_smoothing=0.2), ""),
    (TRL | {"label_smoothing": 0.2}, DPO(**B), "label_smoothing"),
    (TRL | LD, LDDPO(**B, alpha=0.3), ""),
    (TRL | LD | PRECOMPUTED, LDDPO(**B, alpha=0.3), "precompute_ref_log_probs"),
    (TRL | LD | {"loss_type": "ipo"}, IPO(**B), "ld_alpha"),
    (TRL | LD | WEIGHTS, DPO(**B), "ld_alpha use_weighting"),
    (TRL | LD | JS, DPO(**B), "ld_alpha f_divergence_type"),
    (TRL | WEIGHTS, WPO(**B), ""),
    (TRL | WEIGHTS | {"loss_type": "hinge"}, Hinge(**B), "use_weighting"),
    (TRL | WEIGHTS | {"rpo_alpha": 0.5}, DPO(**B, nll_weight=0.5), "use_weighting"),
    (TRL | WEIGHTS | BOTH, both([1.0, 1.0]), "use_weighting"),
    (TRL | JS, FDPO(**B, divergence="js"), ""),
    (TRL | JS | {"loss_type": "hinge"}, Hinge(**B), "f_divergence_type"),
    (TRL | ALPHA | {"f_alpha_divergence_coef": 0.9}, FDPO(**B, divergence="alpha", alpha=0.9), ""),
    (TRL | ALPHA | {"f_alpha_divergence_coef": 2.0}, DPO(**B), "f_divergence_type f_alpha_divergence_coef"),
    (TRL | MPO, both([0.8, 0.2], nll_weight=1.0), ""),
    (TRL | BOTH | {"rpo_alpha": 1.0}, both([1.0, 1.0], nll_weight=1.0), ""),
    (TRL | {"cpo_alpha": 1.0}, CPO(**B), ""),
    (TRL | {"cpo_alpha": 0.0, "label_smoothing": 0.1}, CPO(**B, nll_weight=0.0), "label_smoothing"),
    (
        TRL | PRECOMPUTED | {"cpo_alpha": 0.5, "ref_model_name_or_path": "r"},
        CPO(**B, nll_weight=0.5),
        "ref_model_name_or_path precompute_ref_log_probs",
    ),
    (TRL | {"loss_type": "simpo"}, SimPO(**B, gamma=0.5, nll_weight=1.0), ""),  # defaults of CPOConfig
    (TRL | {"loss_type": "simpo", "simpo_gamma": 1.6, "cpo_alpha": 0.0}, SimPO(**B, gamma=1.6), ""),
    (TRL | {"loss_type": "alphapo"}, SimPO(**B, gamma=0.5), ""),
    (AXOLOTL | {"rl": "simpo"}, SimPO(beta=0.1, gamma=0.5, nll_weight=1.0), ""),
    (AXOLOTL | {"rl": "simpo", "cpo_alpha": 0.3, "simpo_gamma": 1}, SimPO(beta=0.1, gamma=1, nll_weight=0.3), ""),
    (AXOLOTL | {"rl": "dpo", "dpo_use_weighting": True, "dpo_label_smoothing": 0.1}, WPO(label_smoothing=0.1), ""),
    (AXOLOTL | {"rl": "ipo", "dpo_use_weighting": True}, IPO(), "dpo_use_weighting"),
    (AXOLOTL | {"rl": "orpo", "rpo_alpha": 0.5, "use_dft": True}, ORPO(), "rpo_alpha use_dft"),
    (AXOLOTL | {"rl": "orpo", "orpo_alpha": 0.3, "rl_beta": 0.2}, ORPO(**B), ""),
    (FACTORY | {"pref_loss": "orpo", "pref_ftx": 0.3, "pref_beta": 0.2}, ORPO(**B, nll_weight=1.3), ""),
    (FACTORY | {"ld_alpha": 0.3, "ref_model": "r"}, DPO(), "ld_alpha"),
]


# promise: import
@pytest.mark.parametrize(("given", "loss", "missing"), CASES, ids=[str(given) for given, _, _ in CASES])
def test_the_loss_is_that_of_all_settings_together(
    given: dict[str, Any], loss: PreferenceLoss, missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In whatever order, with the defaults of the other tool; what the loss is not is said to have no counterpart."""
    for name, order in {"a": given, "b": dict(reversed(given.items()))}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(order, sort_keys=False))
        main(["import", str(tmp_path / f"{name}.yaml"), "--json"])
        lines = json.loads(capsys.readouterr().out)["lines"]
        output = tmp_path / f"{name}.smollit.yaml"
        assert LOSS.make(yaml.safe_load(output.read_text())["model"]["init_args"]["loss"]) == loss
        lost = {line["name"].partition(":")[0] for line in lines if line["kind"] == "no counterpart"}
        assert lost == set(missing.split())
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(output), "--data.dataset", "d", "--print_config"])
    assert ended.value.code in (0, None), capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"loss_type": "sft"}, "`loss_type: sft` has no counterpart alone"),
        ({"loss_type": "nll"}, "`model.loss` is nll: expected one of AOT"),
        ({"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0]}, "one number for each of sigmoid, hinge"),
        ({"loss_type": "hinge", "cpo_alpha": 1.0}, "`loss_type: hinge` of CPO has no counterpart"),
        ({"loss_type": ["sigmoid", "hinge"], "cpo_alpha": 1.0}, "CPO has one loss, got sigmoid, hinge"),
        ({"loss_type": "alphapo", "alpha": 0.1}, "`alpha` of CPO, which makes it AlphaPO, has no counterpart"),
    ],
)
def test_a_loss_that_smollit_lacks_is_refused(own: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Another loss is never trained instead."""
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(TRL | own))
    with pytest.raises(SystemExit, match=words):
        main(["import", str(tmp_path / "a.yaml")])
