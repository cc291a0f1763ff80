"""The ledger: the losses of rows are those of the curves, over stops and resumes; and what it says about rows."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from smollit.commands.report.rows import RowReport, row_report
from smollit.commands.report.validated import validated_rows
from smollit.main import main
from smollit.training.ledger import FILE, read_ledger
from smollit.training.logs.table import read_table
from tests.conftest import RATED, SAMPLES, rated_rows
from tests.training.conftest import stop_and_resume

LOGGED = {"logger": True, "log_every_n_steps": 1, "max_epochs": 2, "num_sanity_val_steps": -1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_rows_add_up_to_the_curves_over_a_stop(kind: str, fit: Any, tmp_path: Path) -> None:
    """Stopped at step 3 of 8 and resumed: the ledger of the run that never stopped. Each of the 13 rows stands there
    once per epoch, with a hash; weighted means of a step's rows are `train/loss` and `val/loss` of that step."""
    stop_and_resume(fit, tmp_path, 3, kind=kind, **LOGGED)
    table = read_ledger(tmp_path / "broken" / FILE)
    assert table.equals(read_ledger(tmp_path / "whole" / FILE))
    train = table.filter(pc.equal(table["split"], "train"))
    assert sorted(zip(train["epoch"].to_pylist(), train["row"].to_pylist(), strict=True)) == [
        (epoch, row) for epoch in range(2) for row in range(13)
    ]
    assert len(set(train["hash"].to_pylist())) == 13
    curves = read_table(tmp_path / "whole/metrics.csv")
    for row in curves:
        at = table.filter(pc.equal(table["step"], int(row["step"])))
        for split in ("train", "val"):
            rows = at.filter(pc.equal(at["split"], split))
            if value := row.get(f"{split}/loss"):
                weights, losses = rows["weight"].to_numpy(), rows["loss"].to_numpy()
                assert (weights * losses).sum() / weights.sum() == pytest.approx(float(value), rel=1e-5)
    last = {name: float(value) for name, value in curves[-1].items() if value}
    for name in ("loss",) if kind == "sft" else ("loss", "rewards/accuracies", "rewards/margins"):
        found = validated_rows(tmp_path / "broken", f"val/{name}", 8)
        assert found is not None and found.measured.interval().value == pytest.approx(last[f"val/{name}"], rel=1e-5)


@pytest.mark.slow
def test_pairs_of_a_row_and_a_second_run(fit: Any, tmp_path: Path) -> None:
    """Four rated responses are six pairs of one row: six entries per row. A new run in the folder begins anew."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rated_rows(5)))
    data = {"dataset": str(rows), "columns": RATED, "pairs_of": "all", "train_split": "train[:4]"}
    data |= {"val_split": "train[4:]", "max_dropped_share": 1.0}
    for _ in range(2):
        run = fit(tmp_path / "run", kind="dpo", data=data, ckpt_path=None, **LOGGED | {"max_epochs": 1})
        assert run.error is None
        train = read_ledger(tmp_path / "run" / FILE)
        train = train.filter(pc.equal(train["split"], "train"))
        pairs = np.bincount(train["row"].to_numpy())
        assert train.num_rows == len(run.trainer.datamodule.examples["train"]) and pairs.max() == 6
        assert len(set(train["hash"].to_pylist())) == len(row_report(tmp_path / "run").rows) == 4


def test_what_happened_to_a_row() -> None:
    """Margins of five rows in four epochs, by hand; row 9 was seen in one epoch alone."""
    values = np.array([[1, 2, 2, 2], [-1, -2, -1, -3], [1, 1, -1, -1], [1, -1, 1, 1], [np.nan, 1, np.nan, np.nan]])
    report = RowReport(np.array([3, 4, 5, 6, 9]), values.astype(float), values > 0, is_pairs=True)
    assert report.groups == {
        "never_learned": [4], "forgotten": [5], "fought_over": [6], "likely_mislabelled": []
    }  # fmt: skip
    assert report.scores.argmin() == 1
    values = np.vstack([values, np.ones((2, 4))])  # in the last epoch, 2 of 4 pairs were right, and now 4 of 6 are
    report = RowReport(np.array([3, 4, 5, 6, 9, 10, 11]), values, values > 0, is_pairs=True)
    assert report.groups["likely_mislabelled"] == [4]


# promise: rows
@pytest.mark.slow
def test_flipped_pairs_of_the_demo_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 % of the demo's training pairs are swapped: the score ranks them with an AUC above 0.9, counted over all pairs
    of a swapped and another row, and most of the rows that are named are swapped ones."""
    data = tmp_path / "data"
    shutil.copytree(SAMPLES / "ultrafeedback", data)
    file = data / "train_prefs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    swapped = set(random.Random(1).sample(range(len(rows)), len(rows) // 5))
    for row in swapped:
        rows[row]["chosen"], rows[row]["rejected"] = rows[row]["rejected"], rows[row]["chosen"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["fit", "--config", "configs/demo/sft.yaml", "--trainer.default_root_dir", str(tmp_path / "sft")])
    words = ["fit", "--config", "configs/demo/dpo.yaml", "--data.dataset", str(data), "--trainer.callbacks", "null"]
    words += ["--trainer.default_root_dir", str(tmp_path / "dpo"), "--model.reference_name", "null"]
    main([*words, "--model.model_name", str(tmp_path / "sft/export")])
    report = row_report(tmp_path / "dpo")
    scores = dict(zip(report.rows.tolist(), report.scores.tolist(), strict=True))
    others = set(scores) - swapped
    wins = sum(scores[a] < scores[b] for a in swapped for b in others)
    assert wins / (len(swapped) * len(others)) > 0.9
    capsys.readouterr()
    main(["report", str(tmp_path / "dpo"), "--rows", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    named = found["rows"]["likely_mislabelled"]
    assert len(swapped & set(named)) > 0.7 * max(len(named), len(swapped))
    first = json.loads((tmp_path / "dpo/rows.jsonl").read_text().splitlines()[0])
    assert first["row"] == named[0] and "likely_mislabelled" in first["groups"]
