"""Runs over packed sequences, token budgets, streams, parts, named validation sets: every row once, resumed or not."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smollit.data.sources.mixture import Part
from smollit.losses import DPO
from tests.training.conftest import stop_and_resume, stop_at

ONE_EPOCH: dict[str, Any] = {"accumulate_grad_batches": 1, "max_epochs": 1}


# ---- rows per step


# promise: step-rows
@pytest.mark.slow
def test_rows_per_step_stay_when_the_micro_batch_changes(fit: Any, tmp_path: Path) -> None:
    """13 rows, 4 per step: 4 steps in an epoch, the last of 1 row; the rates of 2 epochs fall from 8/8 to 1/8 of the
    peak. Stopped after 3 steps of 2 x 2 rows and resumed with 1 x 4: rows and rates of a run that never stopped."""
    options: dict[str, Any] = {"accumulate_grad_batches": 1, "max_epochs": 2}
    data = {"global_batch_size": 4, "train_batch_size": 2, "group_by_length": True}
    whole = fit(tmp_path / "whole", data=data, **options)
    broken = fit(tmp_path / "broken", stop_at(3), data=data, **options)
    resumed = fit(tmp_path / "broken", data=data | {"train_batch_size": 4}, **options)
    assert (broken.trainer.accumulate_grad_batches, resumed.trainer.accumulate_grad_batches) == (2, 1)
    assert [len(rows) for rows in whole.rows] == [4, 4, 4, 1] * 2
    assert [sorted(rows) for rows in broken.rows + resumed.rows] == [sorted(rows) for rows in whole.rows]
    rates = [rate for _, _, rate in broken.steps + resumed.steps]
    assert rates == pytest.approx([1e-3 * (8 - k) / 8 for k in range(8)])


@pytest.mark.parametrize(
    ("data", "accumulation", "expected"),
    [
        ({"global_batch_size": 7}, 1, "multiple of the 2 rows of a micro-batch on all devices .* set it to 6 or 8"),
        ({"global_batch_size": 1}, 1, "set it to 2, or"),
        ({"global_batch_size": 4}, 3, "an accumulation of 2 follows, and `trainer.accumulate_grad_batches` is 3"),
        ({"global_batch_size": 4, "max_batch_tokens": 200}, 1, "`data.global_batch_size` needs micro-batches of equal"),
    ],
)
def test_rows_per_step_that_can_not_be_are_refused(
    fit: Any, tmp_path: Path, data: dict[str, Any], accumulation: int, expected: str
) -> None:
    """Micro-batches of 2 rows on one device: 7 rows lie between 3 and 4 of them."""
    with pytest.raises(ValueError, match=expected):
        raise fit(tmp_path, data=data, accumulate_grad_batches=accumulation).error


# ---- packing and token budgets


# promise: resume
# case: resume-01
@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_a_packed_run_resumes_to_the_bit_in_mid_epoch(kind: str, fit: Any, tmp_path: Path) -> None:
    """13 examples in fewer packed sequences, 2 per step, stopped in epoch 1: each epoch has each example once."""
    data = {"packing": "on", "pack_length": 200}
    whole, _ = stop_and_resume(fit, tmp_path, 5, kind=kind, data=data, max_epochs=3, accumulate_grad_batches=1)
    per_epoch = len(whole.steps) // 3
    assert 2 <= per_epoch < math.ceil(13 / 2)
    assert 5 % per_epoch  # so it was stopped inside an epoch
    assert all(sorted(seen) == list(range(13)) for seen in whole.diary.epochs.values())


@pytest.mark.slow
def test_a_token_budget_gives_each_epoch_its_own_number_of_steps(fit: Any, tmp_path: Path) -> None:
    """The schedule falls to 0 after the last step of 5 epochs, although they differ in length.

    Step k of N has the rate 1e-3 (1 - k / N). Lightning counts 5 times the first epoch, and leaves out what a later
    epoch has beyond it.
    """
    data = {"max_batch_tokens": 200, "train_batch_size": 8}
    run, _ = stop_and_resume(fit, tmp_path, 9, data=data, max_epochs=5, accumulate_grad_batches=2)
    sampler = run.trainer.datamodule.sampler()
    batches = [len(sampler.sizes(0, epoch)) for epoch in range(5)]
    steps = sum(math.ceil(number / 2) for number in batches)
    assert len(set(batches)) > 1
    assert max(batches) > batches[0]
    assert run.trainer.global_step == run.trainer.estimated_stepping_batches == steps
    assert [rate for _, _, rate in run.steps] == pytest.approx([1e-3 * (1 - k / steps) for k in range(steps)])
    assert all(sorted(seen) == list(range(13)) for seen in run.diary.epochs.values())


def test_max_steps_bound_a_token_budget_too(fit: Any, tmp_path: Path) -> None:
    """3 of many steps: the rates are 1, 2/3 and 1/3 of the peak."""
    run = fit(tmp_path, data={"max_batch_tokens": 200}, max_epochs=5, max_steps=3, accumulate_grad_batches=1)
    assert [rate for _, _, rate in run.steps] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


@pytest.mark.slow
def test_packed_pairs_get_the_precomputed_values_of_their_own(
    fit: Any, tiny_data: dict[str, Path], tmp_path: Path
) -> None:
    """Two parts, packed: losses and weights as with the reference beside the policy, to 1e-6."""
    folder = str(tiny_data["ultrafeedback"])
    parts = [Part(folder, "train_prefs[:5]"), Part(folder, "train_prefs[5:]")]
    options: dict[str, Any] = {"kind": "dpo", "data": {"packing": "on", "dataset": parts}, **ONE_EPOCH}
    frozen, precomputed = (
        fit(tmp_path / name, model={"reference": name, "dropout": 0.0}, **options) for name in ("frozen", "precomputed")
    )
    assert precomputed.error is None
    assert precomputed.rows == frozen.rows
    assert precomputed.diary.losses == pytest.approx(frozen.diary.losses, abs=1e-6)
    assert not precomputed.module.scorer.has_model


# case: resume-01
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_workers_begin_where_the_run_stopped(strategy: str, fit: Any, tmp_path: Path) -> None:
    """A sharded strategy reads the checkpoint when workers have already fetched batches from the start of the epoch."""
    options = {"data": {"num_workers": 1}, "model": {"dropout": 0.0}, "strategy": strategy, "devices": 1, **ONE_EPOCH}
    whole = fit(tmp_path / "whole", **options)
    fit(tmp_path / "broken", stop_at(3), **options)
    resumed = fit(tmp_path / "broken", **options)
    assert resumed.error is None
    assert resumed.rows == whole.rows[3:]


# ---- streams


STREAM: dict[str, Any] = {"streaming": True, "shuffle_buffer": 6}


# promise: resume
# case: resume-01 resume-03 data-13
@pytest.mark.parametrize(
    ("kind", "stop", "steps"),
    [
        pytest.param("sft", 6, 10, id="mid-epoch"),
        pytest.param("sft", 4, 6, id="epoch end"),
        pytest.param("dpo", 2, 4, id="pairs"),
    ],
)
@pytest.mark.slow
def test_a_stream_resumes_to_the_bit(kind: str, stop: int, steps: int, fit: Any, tmp_path: Path) -> None:
    """13 rows in batches of 2, 2 accumulated: 4 steps per epoch, so step 4 is the last of the first epoch."""
    whole, _ = stop_and_resume(fit, tmp_path, stop, kind=kind, data=STREAM, max_steps=steps, max_epochs=-1)
    epochs = whole.diary.epochs
    assert sorted(epochs[0]) == list(range(13))
    if steps > 8:
        assert sorted(epochs[1]) == list(range(13)) and epochs[0] != epochs[1]
        assert len(epochs[2]) == 2 * 4


def test_a_stream_has_no_end_to_plan_for(fit: Any, tmp_path: Path) -> None:
    run = fit(tmp_path, data=STREAM, max_epochs=2)
    assert isinstance(run.error, ValueError)
    assert "`data.streaming` does not know how long an epoch is: set `trainer.max_steps`" in str(run.error)


def test_a_stream_is_not_packed(fit: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`data.packing: on` needs all lengths in advance"):
        fit(tmp_path, data=STREAM | {"packing": "on"}, max_steps=2)


# ---- parts and their weights


@pytest.mark.slow
def test_weights_say_how_often_a_row_is_seen(fit: Any, tiny_data: dict[str, Path], tmp_path: Path) -> None:
    """5 rows at weight 2, 4 of another file at 0.5, in 2 epochs: the first come 2 x 2 times, the others once.

    So each epoch has 5 x 2 + 4 / 2 = 12 rows. Rows of the second part are numbered on from the first: 5 to 8.
    """
    folder = str(tiny_data["ultrachat"])
    parts = [Part(folder, "train_sft[:5]", weight=2.0), Part(folder, "test_sft", weight=0.5)]
    data = {"dataset": parts, "val_split": None}
    run, _ = stop_and_resume(fit, tmp_path, 8, data=data, accumulate_grad_batches=1, max_epochs=2)
    assert [len(seen) for seen in run.diary.epochs.values()] == [12, 12]
    assert Counter(row for seen in run.diary.epochs.values() for row in seen) == Counter(
        {row: 4 if row < 5 else 1 for row in range(9)}
    )


# ---- named validation sets


SETS = {"few": "test_sft[:1]", "more": "test_sft[1:]"}


def val_sets(folder: Path, kind: str) -> dict[str, Part]:
    return {name: Part(str(folder), split if kind == "sft" else split.replace("sft", "prefs"))
            for name, split in SETS.items()}  # fmt: skip


# promise: named-sets
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "unit"), [("sft", "loss_tokens"), ("dpo", "kept")])
def test_named_validation_sets_have_their_own_curves_and_one_over_all(
    kind: str, unit: str, fit: Any, tiny_data: dict[str, Path], tmp_path: Path
) -> None:
    """val/loss = (n1 loss1 + n2 loss2) / (n1 + n2), n loss tokens of chats, or pairs; in the events of each step."""
    folder = tiny_data["ultrachat" if kind == "sft" else "ultrafeedback"]
    data = {"val_sets": val_sets(folder, kind)}
    run = fit(tmp_path, kind=kind, data=data, max_steps=2, logger=True)
    assert run.error is None
    counts = [getattr(run.trainer.datamodule.reports[f"val/{name}"], unit) for name in SETS]
    assert counts[0] < counts[1]
    events = EventAccumulator(str(tmp_path)).Reload()
    few, more, both = ([event.value for event in events.Scalars(f"val/{name}loss")] for name in ("few/", "more/", ""))
    assert len(both) == 1
    assert few[0] != pytest.approx(more[0], rel=1e-4)
    expected = (counts[0] * few[0] + counts[1] * more[0]) / sum(counts)
    assert both == pytest.approx([expected], rel=1e-6)
    shown = run.trainer.validate(run.module, datamodule=run.trainer.datamodule, verbose=False)[0]
    assert [shown[f"val/{name}loss"] for name in ("few/", "more/", "")] == pytest.approx([few[0], more[0], both[0]])


def test_a_named_set_can_be_monitored(fit: Any, tiny_data: dict[str, Path], tmp_path: Path) -> None:
    """ModelCheckpoint keeps the best by the second set's own loss."""
    best = ModelCheckpoint(tmp_path / "best", "{step}", monitor="val/more/loss", auto_insert_metric_name=False)
    run = fit(tmp_path, best, data={"val_sets": val_sets(tiny_data["ultrachat"], "sft")}, max_steps=4)
    assert run.error is None
    assert len(list((tmp_path / "best").glob("*.ckpt"))) == 1
    assert best.best_model_score is not None
    assert run.trainer.callback_metrics["val/more/loss"] >= best.best_model_score


# ---- what stays in the run's folder


def test_the_data_report_is_in_the_runs_folder(fit: Any, tiny_data: dict[str, Path], tmp_path: Path) -> None:
    """A report per split; a later `validate` in the same folder does not take away what training was on."""
    run = fit(tmp_path, max_steps=1)
    written = json.loads((tmp_path / "data_report.json").read_text())
    assert {split: report["rows"] for split, report in written.items()} == {"train": 13, "val": 4}
    other = fit(tmp_path, max_steps=1)  # a data module that has only seen `validate`
    other.trainer.datamodule.reports.clear()
    other.trainer.datamodule.setup("validate")
    assert json.loads((tmp_path / "data_report.json").read_text()) == written
    assert run.error is None


# promise: seed
# case: B15
@pytest.mark.slow
def test_the_order_follows_seed_everything_and_a_resumed_run_its_first_seed(fit: Any, tmp_path: Path) -> None:
    """Seeds 1, 1 and 2: the same rows, and others; with `data.seed` the same again. A run that is stopped under
    seed 1 and resumed under 2 sees the rows of seed 1, in a resumed run of a resumed run too."""
    rows = {name: fit(tmp_path / name, seed=seed).rows for name, seed in (("1", 1), ("again", 1), ("2", 2))}
    assert rows["1"] == rows["again"] != rows["2"]
    assert fit(tmp_path / "set 1", seed=1, data={"seed": 5}).rows == fit(tmp_path / "set 2", data={"seed": 5}).rows
    parts = [fit(tmp_path / "broken", stop_at(3), seed=1), fit(tmp_path / "broken", stop_at(6), seed=2)]
    parts.append(fit(tmp_path / "broken", seed=3))
    assert [step for part in parts for step in part.rows] == rows["1"]


def test_pairs_without_scores_are_refused_before_the_first_step(make_run: Any, tmp_path: Path) -> None:
    """The loss reads scores, and the last of 5 pairs has none: no step is made."""
    scores = {"score_chosen": 2, "score_rejected": 1}
    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} | (scores if n < 4 else {}) for n in range(5)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = {"dataset": str(tmp_path / "pairs.jsonl"), "train_split": "train", "val_split": None}
    run = make_run(kind="dpo", model={"loss": DPO(scores="weight")}, data=data, max_steps=5)
    with pytest.raises(
        ValueError, match=r"`model.loss.scores` is weight, and 1 of 5 pairs \(20.0%\) of train have no scores"
    ):
        run.fit()
    assert run.trainer.global_step == 0
