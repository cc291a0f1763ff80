"""`report`: each rule of the verdict on made curves, and the page of a run."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from smollit.main import main
from smollit.verdict import Curves, verdict
from smollit.verdict.preferences import interval


def curves(
    num_val: int | None = 1000,
    num_train: int | None = None,
    model_name: str = "",
    dataset: str = "",
    truncated: float | None = None,
    starts_at_ln_2: bool = False,
    **metrics: list[float],
) -> Curves:
    """A point every 10 steps; `val_loss` is `val/loss`, `train_rewards__margins` is `train/rewards/margins`."""
    names = {name.replace("__", "/").replace("_", "/", 1): values for name, values in metrics.items()}
    length = max(map(len, names.values()))
    rows = [
        {"step": str(10 * index)} | {name: str(values[index]) for name, values in names.items() if index < len(values)}
        for index in range(length)
    ]
    return Curves(
        rows,
        num_val=num_val,
        num_train=num_train,
        truncated=truncated,
        model_name=model_name,
        dataset=dataset,
        starts_at_ln_2=starts_at_ln_2,
    )


DPO = {"train_rewards__margins": [0.0, 0.1, 0.2]}
CASES: list[tuple[str, bool | None, str, dict[str, Any]]] = [
    ("learned", True, "7.0000 at step 0, 5.0000 at step 20", {"val_loss": [7.0, 6.0, 5.0]}),
    ("learned", False, "the loss rose", {"train_loss": [5.0, 5.5, 6.0]}),
    ("learned", False, "has not moved", {"train_loss": [5.0, 5.0, 4.999]}),
    ("at-ln-2", False, "responses of a pair are equal",
     DPO | {"train_loss": [0.6931] * 3, "train_gradient_norm": [0.0] * 3}),
    ("at-ln-2", False, "the learning rate is at most 1.0e-09",
     DPO | {"train_loss": [0.6931] * 3, "train_gradient_norm": [1.0] * 3, "train_learning_rate": [1e-9] * 3}),
    # single steps of few rows say little: means of 4 and their noise, 2 x sqrt((0.0225 + 0.0225) / 4) x 2 / sqrt(3)
    ("learned", False, "0.7000 over the 4 logged steps from step 0, 0.8000 over the 4 until step 150, and its noise"
     " is 0.2449",
     {"train_loss": [0.55, 0.85] * 2 + [0.6] * 8 + [0.65, 0.95] * 2}),
    # a DPO run starts at ln 2, before its first validation, where its settings say so; another point is not made up
    ("learned", True, "0.6931 at step 0, 0.6626 at step 20",
     DPO | {"train_loss": [0.6931, 0.75, 0.63], "val_loss": [math.nan, 0.6558, 0.6626], "starts_at_ln_2": True}),
    ("learned", True, "`val/loss` 1.0012 at step 10, 0.9986 at step 20",
     DPO | {"train_loss": [0.6839, 0.75, 0.63], "val_loss": [math.nan, 1.0012, 0.9986]}),
    # bf16 moves losses of single rows where no weight moves: 16 logged means of 8 rows, to 0.02
    ("at-ln-2", False, "the learning rate is at most 1.0e-09",
     DPO | {"train_loss": [0.6931 + 0.01 * (-1) ** n for n in range(16)], "val_loss": [0.6931] * 15 + [0.6961],
            "train_gradient_norm": [1.0] * 16, "train_learning_rate": [1e-9] * 16, "num_val": 100,
            "train_epoch": [n / 16 for n in range(1, 17)], "num_train": 128}),
    ("warm-up", False, "still rising", {"train_loss": [5.0, 4.0, 3.0], "train_learning_rate": [1e-5, 2e-5, 3e-5]}),
    ("unstable", False, "reached 50 at step 30, 50 times",
     {"train_loss": [5.0, 4.0], "train_gradient_norm": [1.0, 1.0, 1.0, 50.0, 1.0]}),
    ("overfitting", False, "best at step 10, 2.0000, and is 2.2000 at step 20",
     {"train_loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 2.0, 2.2]}),
    ("over-optimized", False, "margin grew from 0.500 to 1.500, and the accuracy fell from 0.700 to 0.600",
     {"val_rewards__accuracies": [0.5, 0.7, 0.6], "val_rewards__margins": [0.0, 0.5, 1.5]}),
    ("chosen-falls", None, "fell from -100.0 to -130.0", DPO | {"val_logps__chosen": [-100.0, -110.0, -130.0]}),
    ("length-bias", False, "0.900 where the chosen response is the longer one, and 0.300 where it is the shorter",
     DPO | {"val_rewards__accuracies_chosen_longer": [0.5, 0.9], "val_rewards__accuracies_chosen_shorter": [0.5, 0.3]}),
    ("label-noise", False, "ranks 0.620 of 5,000 new training pairs right, and at least 0.700 of the validation pairs,"
     " as if 20% of the training labels were swapped",
     {"train_rewards__accuracies": [0.5, 0.6, 0.61, 0.63], "val_rewards__accuracies": [0.5, 0.7, 0.71, 0.71],
      "train_epoch": [0.0, 0.5, 0.75, 1.0], "num_train": 10_000}),
    ("truncated", None, "25.0% of the training rows", {"train_loss": [5.0, 4.0], "truncated": 0.25}),
    ("certain", False, "can't be told from chance", {"num_val": 100, "val_rewards__accuracies": [0.5, 0.55]}),
    ("certain", True, "accuracy 0.620 on 1,000 pairs", {"val_rewards__accuracies": [0.5, 0.62]}),
    ("published", None, "at the published accuracy of SmolLM2 135m on this data, 0.615",
     {"val_rewards__accuracies": [0.62], "model_name": "x/SmolLM2-135M", "dataset": "x/ultrafeedback_binarized"}),
]  # fmt: skip


# promise: verdict
@pytest.mark.parametrize(
    ("rule", "good", "words", "made"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_rule_speaks_where_its_curve_says_so(
    rule: str, good: bool | None, words: str, made: dict[str, Any]
) -> None:
    """The rule's sentence holds the numbers of the curve."""
    (found,) = [each for each in verdict(curves(**made)) if each.rule == rule]
    assert found.good is good and words in found.text and (found.advice or good is not False)


def test_a_good_run_gets_no_problem() -> None:
    """Losses fall, the norm is steady, the accuracy is above chance: nothing but good findings."""
    good = curves(
        train_loss=[0.69, 0.6, 0.55], val_loss=[0.69, 0.62, 0.6], val_rewards__accuracies=[0.5, 0.6, 0.65],
        train_rewards__accuracies=[0.5, 0.58, 0.62], train_epoch=[0.0, 0.5, 1.0], num_train=10_000,
        val_rewards__margins=[0.0, 0.1, 0.2], train_gradient_norm=[1.0] * 5, train_learning_rate=[2.0, 3.0, 1.0],
    )  # fmt: skip
    assert {found.good for found in verdict(good)} == {True}


def test_the_interval_of_a_fraction() -> None:
    """Wilson's interval of 0.5 in 100 trials: 0.404 to 0.596, by R's prop.test(50, 100, correct=FALSE)."""
    assert interval(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-4)


@pytest.mark.slow
def test_the_page_of_a_run(fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two DPO runs: both in one page without links to elsewhere, the table by step, JSON for programs. The second is
    compared with the first: the difference of their last validation losses, row by row."""
    for name, rate in (("one", 1e-3), ("two", 1e-5)):
        options = {"max_epochs": None, "max_steps": 4, "log_every_n_steps": 1}
        fit(tmp_path / name, kind="dpo", model={"learning_rate": rate}, logger=True, **options)
    capsys.readouterr()
    main(["report", str(tmp_path / "one"), str(tmp_path / "two"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [run["table"][-1]["step"] for run in found] == ["4", "4"]
    assert {"training loss", "validation loss", "accuracies", "margins", "rewards/chosen"} <= found[0]["table"][
        0
    ].keys()
    losses = [float(run["table"][-1]["validation loss"]) for run in found]
    [said] = [each["text"] for each in found[1]["findings"] if each["rule"] == "compared"]
    assert "against one on the same validation rows, at step 4, with 95 % intervals: `val/loss` " in said
    assert float(said.split("`val/loss` ")[1].split()[0]) == pytest.approx(losses[1] - losses[0], abs=2e-4)
    assert not any(each["rule"] == "compared" for each in found[0]["findings"])
    for name, loss in (("one", "DPO"), ("two", "Hinge")):
        (tmp_path / name / "config.yaml").write_text(f"model: {{init_args: {{model_name: A, loss: {loss}}}}}")
    main(["report", str(tmp_path / "one"), str(tmp_path / "two"), "--json"])
    found = json.loads(capsys.readouterr().out)
    [said] = [each["text"] for each in found[1]["findings"] if each["rule"] == "compared"]
    assert "`val/rewards/accuracies` " in said and "`val/loss`" not in said and "losses and margins do not" in said
    text = (tmp_path / "one/report.html").read_text()
    assert text.count("<svg") >= 4 and all(f"<!-- {name} -->" in text for name in ("one", "two", "train/loss"))
    assert "<code>val/loss</code>" in text
    assert not re.search(r"(src|href)=.http", text)
    assert "| step |" in (tmp_path / "one/report.md").read_text()
    with pytest.raises(SystemExit, match="is no run folder"):
        main(["report", str(tmp_path)])
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2.")  # a line that is being written
    with pytest.raises(SystemExit, match="has logged nothing yet"):
        main(["report", str(tmp_path)])
