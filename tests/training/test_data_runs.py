"""Runs over packed rows, token budgets, streams, parts and named validation sets: stopped or not, all rows once."""

import json
import math
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smollit.data import PreferenceDataModule
from smollit.data.sources.mixture import Part

ONE_EPOCH: dict[str, Any] = {"accumulate_grad_batches": 1, "max_epochs": 1}


class StopAt(Callback):
    """Asks the run to stop when so many optimizer steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def rows(run: Any) -> list[list[int]]:
    return [seen for _, seen, _ in run.steps]


def check_same(whole: Any, broken: Any, resumed: Any) -> None:
    """The two halves have the steps of the whole run, and the second ends with its weights, to the bit."""
    assert isinstance(broken.error, SystemExit)
    assert whole.error is None and resumed.error is None
    assert broken.steps + resumed.steps == whole.steps
    assert all(torch.equal(resumed.weights[key], whole.weights[key]) for key in whole.weights)


def stop_and_go(fit: Any, folder: Path, step: int, **options: Any) -> Any:
    """A whole run, after one that was stopped at a step and went on gave the same."""
    whole = fit(folder / "whole", **options)
    broken = fit(folder / "broken", StopAt(step), **options)
    check_same(whole, broken, fit(folder / "broken", **options))
    return whole


# ---- packing and token budgets


# case: resume-01
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_packed_run_goes_on_to_the_bit_in_mid_epoch(kind: str, fit: Any, tmp_path: Path) -> None:
    """13 examples in fewer rows, 2 rows per step, stopped in epoch 1: each epoch has each example once."""
    data = {"packing": "on", "pack_length": 200}
    whole = stop_and_go(fit, tmp_path, 5, kind=kind, data=data, max_epochs=3, accumulate_grad_batches=1)
    per_epoch = len(whole.steps) // 3
    assert 2 <= per_epoch < math.ceil(13 / 2)
    assert 5 % per_epoch  # so it was stopped inside an epoch
    assert all(sorted(seen) == list(range(13)) for seen in whole.diary.epochs.values())


def test_a_token_budget_gives_each_epoch_its_own_number_of_steps(fit: Any, tmp_path: Path) -> None:
    """The schedule falls to 0 behind the last step of 5 epochs, although they differ in length.

    Step k of N has the rate 1e-3 (1 - k / N). Lightning counts 5 times the first epoch, and leaves out what a later
    epoch has more.
    """
    data = {"max_batch_tokens": 200, "train_batch_size": 8}
    run = stop_and_go(fit, tmp_path, 9, data=data, max_epochs=5, accumulate_grad_batches=2)
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


def test_another_token_budget_goes_on_at_the_same_row(fit: Any, tmp_path: Path) -> None:
    """The budget says how many rows a batch has, not which row is next: stopped after 2 steps, then without one."""
    data = {"train_batch_size": 4}
    order = [row for seen in rows(fit(tmp_path / "whole", data=data, **ONE_EPOCH)) for row in seen]
    broken = fit(tmp_path / "broken", StopAt(2), data=data | {"max_batch_tokens": 200}, **ONE_EPOCH)
    resumed = fit(tmp_path / "broken", data=data, **ONE_EPOCH)
    assert [row for seen in rows(broken) + rows(resumed) for row in seen] == order
    assert len(rows(broken)[0]) < 4 == len(rows(resumed)[0])


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
    assert rows(precomputed) == rows(frozen)
    assert precomputed.diary.losses == pytest.approx(frozen.diary.losses, abs=1e-6)
    assert not precomputed.module.scorer.has_model


# case: resume-06
@pytest.mark.parametrize("option", ["group_by_length", "longest_first"])
def test_another_batch_size_keeps_the_order_of_the_epoch(option: str, fit: Any, tmp_path: Path) -> None:
    """13 rows at batch 2, stopped after 6; at batch 3 the other 7 come in the order that batch 2 would have had."""
    data = {"longest_first": False, option: True}
    whole = fit(tmp_path / "whole", data=data, **ONE_EPOCH)
    fit(tmp_path / "broken", StopAt(3), data=data, **ONE_EPOCH)
    resumed = fit(tmp_path / "broken", data=data | {"train_batch_size": 3}, **ONE_EPOCH)
    order = [row for seen in rows(whole) for row in seen]
    assert rows(resumed) == [order[6:9], order[9:12], order[12:]]
    lengths = resumed.trainer.datamodule.sampler().lengths
    if option == "longest_first":
        assert sorted(lengths[row] for row in order[:2]) == sorted(lengths)[-2:]


def test_a_resumed_order_of_another_batch_size_can_be_resumed_again(fit: Any, tmp_path: Path) -> None:
    """Batch 2, then 3, stopped again: the rest is the rest of the order for batch 2, not for batch 3."""
    data = {"group_by_length": True}
    order = [row for seen in rows(fit(tmp_path / "whole", data=data, **ONE_EPOCH)) for row in seen]
    fit(tmp_path / "broken", StopAt(2), data=data, **ONE_EPOCH)
    larger = data | {"train_batch_size": 3}
    second = fit(tmp_path / "broken", StopAt(3), data=larger, **ONE_EPOCH)
    third = fit(tmp_path / "broken", data=larger, **ONE_EPOCH)
    assert rows(second) + rows(third) == [order[4:7], order[7:10], order[10:]]


# case: resume-01
@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_workers_begin_where_the_run_stopped(strategy: str, fit: Any, tmp_path: Path) -> None:
    """A sharded strategy reads the checkpoint when workers have fetched batches already: those of the start."""
    options = {"data": {"num_workers": 1}, "model": {"dropout": 0.0}, "strategy": strategy, "devices": 1, **ONE_EPOCH}
    whole = fit(tmp_path / "whole", **options)
    fit(tmp_path / "broken", StopAt(3), **options)
    resumed = fit(tmp_path / "broken", **options)
    assert resumed.error is None
    assert rows(resumed) == rows(whole)[3:]


# ---- streams


STREAM: dict[str, Any] = {"streaming": True, "shuffle_buffer": 6}


# case: resume-01 data-13
def test_a_stream_goes_on_to_the_bit(fit: Any, tmp_path: Path) -> None:
    """13 rows in batches of 2, 2 accumulated: 4 steps per epoch; stopped at step 6, in the second epoch, of 10."""
    whole = stop_and_go(fit, tmp_path, 6, data=STREAM, max_steps=10, max_epochs=-1)
    assert [sorted(whole.diary.epochs[epoch]) for epoch in (0, 1)] == [list(range(13))] * 2
    assert whole.diary.epochs[0] != whole.diary.epochs[1]
    assert len(whole.diary.epochs[2]) == 2 * 4


# case: resume-03
def test_a_stream_that_was_stopped_at_the_end_of_an_epoch_begins_the_next(fit: Any, tmp_path: Path) -> None:
    """Step 4 is the first epoch's last."""
    stop_and_go(fit, tmp_path, 4, data=STREAM, max_steps=6, max_epochs=-1)


def test_a_stream_of_pairs_trains_and_resumes(fit: Any, tmp_path: Path) -> None:
    stop_and_go(fit, tmp_path, 2, kind="dpo", data=STREAM, max_steps=4, max_epochs=-1)


def test_a_stream_has_no_end_to_plan_for(fit: Any, tmp_path: Path) -> None:
    run = fit(tmp_path, data=STREAM, max_epochs=2)
    assert isinstance(run.error, ValueError)
    assert "`data.streaming` does not know how long an epoch is: set `trainer.max_steps`" in str(run.error)


def test_a_stream_is_not_packed(fit: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`data.packing: on` needs all lengths beforehand"):
        fit(tmp_path, data=STREAM | {"packing": "on"}, max_steps=2)


# ---- parts and their weights


def test_weights_say_how_often_a_row_is_seen(fit: Any, tiny_data: dict[str, Path], tmp_path: Path) -> None:
    """5 rows at weight 2, 4 of another file at 0.5, in 2 epochs: the first come 2 x 2 times, the others once.

    So each epoch has 5 x 2 + 4 / 2 = 12 rows. Rows of the second part are numbered on from the first: 5 to 8.
    """
    folder = str(tiny_data["ultrachat"])
    parts = [Part(folder, "train_sft[:5]", weight=2.0), Part(folder, "test_sft", weight=0.5)]
    run = stop_and_go(fit, tmp_path, 8, data={"dataset": parts, "val_split": None}, accumulate_grad_batches=1,
                      max_epochs=2)  # fmt: skip
    assert [len(seen) for seen in run.diary.epochs.values()] == [12, 12]
    assert Counter(row for seen in run.diary.epochs.values() for row in seen) == Counter(
        {row: 4 if row < 5 else 1 for row in range(9)}
    )


# ---- named validation sets


SETS = {"few": "test_sft[:1]", "more": "test_sft[1:]"}


def val_sets(folder: Path, kind: str) -> dict[str, Part]:
    return {name: Part(str(folder), split if kind == "sft" else split.replace("sft", "prefs"))
            for name, split in SETS.items()}  # fmt: skip


@pytest.mark.parametrize(("kind", "unit"), [("sft", "loss_tokens"), ("dpo", "kept")])
def test_named_sets_have_curves_of_their_own_and_one_over_all(
    kind: str, unit: str, fit: Any, tiny_data: dict[str, Path], tmp_path: Path
) -> None:
    """val/loss = (n1 loss1 + n2 loss2) / (n1 + n2), n trained tokens of chats, or pairs; in the events of each step."""
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


def test_settings_that_change_tokens_or_order_need_force(fit: Any, tmp_path: Path) -> None:
    """The saved position would mean other rows. All of them are changed at once, and each is named."""

    class Settings(Callback):
        def __init__(self, value: str) -> None:
            self.config = {"data": {"init_args": dict.fromkeys(names, value)}}

        def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
            trainer.run_state.config = self.config

    names = [*PreferenceDataModule.token_settings, *PreferenceDataModule.order_settings]
    fit(tmp_path, Settings("before"), max_steps=1)
    refused = fit(tmp_path, Settings("after"), max_steps=2)
    assert isinstance(refused.error, ValueError)
    first, *_ = str(refused.error).split(":")
    assert first.startswith("a resumed run can't change ")
    assert set(re.findall(r"data\.init_args\.(\w+)", first)) == set(names)
