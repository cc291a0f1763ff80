"""`model.reference: precomputed`: the values are those of the frozen reference, stored on disk, and never mixed up."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

from smollit.batch import Batch
from smollit.data import UltraFeedbackDataModule
from smollit.data.sources.mixture import Part
from smollit.losses import IPO
from smollit.models.causal_lm import CausalLM
from smollit.modules import DPOModule
from smollit.training import ReferenceScores, SmollitTrainer
from smollit.training.scores import store
from smollit.training.scores.store import PART, Store

NUM_TRAIN, NUM_VAL = 6, 3
Data = Callable[..., UltraFeedbackDataModule]


class Watched(DPOModule):
    """Notes each micro-batch's loss, all that is logged, and the models that are loaded."""

    def __init__(self, model_name: str, **options: Any) -> None:
        super().__init__(model_name, **options)
        self.loads: list[str] = []
        self.losses_seen: list[float] = []
        self.logged: list[dict[str, float]] = []

    def load(self, model_name: str, *args: Any, **options: Any) -> Any:
        self.loads.append(model_name)
        return super().load(model_name, *args, **options)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses_seen.append(loss.item())
        return loss

    def report(self, named: dict[str, Any]) -> None:
        self.logged.append({name: float(value) for name, value in named.items()})
        super().report(named)


@pytest.fixture
def data(tiny_model: Path, tmp_path: Path) -> Data:
    """Preference rows of different lengths; their tokens and the reference's values in a cache of the test's own."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, count in (("train_prefs", NUM_TRAIN), ("test_prefs", NUM_VAL), ("other", 2)):
        rows = []
        for index in range(count):
            prompt = {"role": "user", "content": f"{split} " * (index + 1)}
            responses = {
                name: [prompt, {"role": "assistant", "content": f"{name} {index}" * (1 + index % length)}]
                for name, length in (("chosen", 3), ("rejected", 2))
            }
            rows.append({"prompt": prompt["content"], **responses})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(**options: Any) -> UltraFeedbackDataModule:
        common = {"dataset": str(folder), "max_length": 96, "train_batch_size": 2, "val_batch_size": 2, "seed": 3}
        return UltraFeedbackDataModule(
            tokenizer_name=str(tiny_model), cache_dir=str(tmp_path / "cache"), **(common | options)
        )

    return make


def trainer(folder: Path, **options: Any) -> SmollitTrainer:
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1} | options
    return SmollitTrainer(str(folder), accelerator="cpu", devices=1, enable_progress_bar=False, **options)


def fit(
    model: Path, data: UltraFeedbackDataModule, folder: Path, run: dict[str, Any] | None = None, **options: Any
) -> Watched:
    options = {"learning_rate": 0.01, "schedule": "constant", "reference": "precomputed"} | options
    module = Watched(str(model), **options)
    trainer(folder, **(run or {})).fit(module, datamodule=data)
    return module


def files(folder: Path) -> dict[Path, int]:
    """Files of values, with the time at which they were written."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("cache/reference-*/*.npy"))}


def well_defined(metrics: dict[str, float]) -> dict[str, float]:
    """Without accuracies of rewards that are 0 up to rounding: the sign of a rounding error means nothing."""
    ties = tuple(name.replace("margins", "accuracies") for name, value in metrics.items() if abs(value) < 1e-5)
    return {name: value for name, value in metrics.items() if not name.startswith(ties)}


# promise: precomputed
# case: dpo-loss-02, dpo-loss-03
@pytest.mark.parametrize("mode", ["precomputed", "offloaded"])
@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.slow
def test_training_and_validation_are_those_of_the_frozen_reference(
    tiny_model: Path, data: Data, tmp_path: Path, mode: str, packing: str
) -> None:
    """6 shuffled pairs, 2 per batch or packed, with validation before and after, 2 epochs: losses, logged metrics and
    weights to 1e-6; margins in validation are 0 at first, and not after."""
    found = []
    for where in ("frozen", mode):
        run = {"max_epochs": 2, "num_sanity_val_steps": -1}
        module = fit(
            tiny_model,
            data(packing=packing, pack_length=128 if packing != "off" else None),
            tmp_path,
            run,
            reference=where,
        )
        found.append((module.losses_seen, module.logged, module.policy.state_dict()))
    (expected_losses, expected_logged, expected_weights), (losses, logged, weights) = found
    assert losses == pytest.approx(expected_losses, rel=1e-6, abs=1e-6)
    assert len(losses) >= 3
    margins = [metrics["val/rewards/margins"] for metrics in logged if "val/rewards/margins" in metrics]
    assert margins[0] == pytest.approx(0.0, abs=1e-6)
    assert abs(margins[-1]) > 1e-3
    for metrics, expected in zip(logged, expected_logged, strict=True):
        assert well_defined(metrics) == pytest.approx(well_defined(expected), rel=1e-5, abs=1e-6)
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-6)


# case: dpo-loss-03
def test_each_row_has_the_value_of_plain_transformers(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    """log p of each response, from all logits of its own sequence, against the value that the data module gives with
    it; the training pairs are those of two parts, 6 and 2."""
    rows = str(tmp_path / "rows")
    pairs = data(dataset=[Part(rows), Part(rows, "other")])
    fit(tiny_model, pairs, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert len(pairs.examples["train"]) == 8
    for split in ("train", "val"):
        for example in pairs.examples[split].__getitems__([list(range(len(pairs.examples[split])))])[0]:
            for name in ("chosen", "rejected"):
                prompt, response = example["prompt_ids"], example[f"{name}_ids"]
                with torch.no_grad():
                    logits = plain(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
                logps = torch.log_softmax(logits, 1).gather(1, torch.tensor(response)[:, None])
                assert example[f"reference_{name}"] == pytest.approx(logps.sum().item(), rel=1e-5)


# promise: select
@pytest.mark.slow
@pytest.mark.parametrize("by", ["reference_margin", "response_perplexity"])
def test_the_best_pairs_by_the_reference(tiny_model: Path, data: Data, tmp_path: Path, by: str) -> None:
    """Half of 6 pairs, by values that a run without selection has: per token, chosen minus rejected; or the lowest
    perplexity of the chosen response. The run trains on these 3, resumes on them, and scores no pair twice."""
    whole = data()
    fit(tiny_model, whole, tmp_path)
    pairs = whole.examples["train"].__getitems__([list(range(NUM_TRAIN))])[0]
    per_token = {
        pair["row"]: [pair[f"reference_{name}"] / len(pair[f"{name}_ids"]) for name in ("chosen", "rejected")]
        for pair in pairs
    }
    score = {row: c - r if by == "reference_margin" else -math.exp(-c) for row, (c, r) in per_token.items()}
    best = sorted(sorted(score, key=lambda row: -score[row])[:3])
    run = {"max_epochs": -1, "max_steps": 2, "enable_checkpointing": True, "checkpoint_every_n_steps": 1}
    selected = data(select=by, select_share=0.5, train_batch_size=1)
    first = fit(tiny_model, selected, tmp_path, run)
    assert selected.examples["train"].column("row").tolist() == best
    assert selected.reports["train"].left_out == {f"`data.select: {by}`": 3}
    assert first.loads == [str(tiny_model)]  # the policy alone: the values were there
    again = Watched(str(tiny_model), learning_rate=0.01, schedule="constant", reference="precomputed")
    resumed = data(select=by, select_share=0.5, train_batch_size=1)
    trainer(tmp_path, **run | {"max_steps": 3}).fit(again, datamodule=resumed, ckpt_path="last")
    assert len(again.losses_seen) == 1
    with pytest.raises(ValueError, match="needs the pass that `model"):
        fit(tiny_model, data(select=by, select_share=0.5), tmp_path / "frozen", reference="frozen")


@pytest.mark.slow
def test_a_second_run_reads_the_values_and_loads_no_reference(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    """First: the reference and the policy are loaded; then, with another loss, batch size and order, the policy."""
    first = fit(tiny_model, data(), tmp_path)
    assert first.loads == [str(tiny_model)] * 2
    assert not first.scorer.has_model
    before = files(tmp_path)
    again = fit(tiny_model, data(train_batch_size=3, seed=9), tmp_path, loss=IPO(beta=0.5), learning_rate=1e-3)
    assert again.loads == [str(tiny_model)]
    assert files(tmp_path) == before
    assert len(before) == 2  # train and val, one file each


# case: dpo-loss-03
@pytest.mark.slow
@pytest.mark.parametrize("change", ["weights", "max_length", "precision", "attention", "rows"])
def test_what_changes_a_value_gives_new_ones(tiny_model: Path, data: Data, tmp_path: Path, change: str) -> None:
    """Other weights in the same folder, shorter rows, bf16, another backend, or other rows: nothing old is read, and
    nothing is lost."""
    source = shutil.copytree(tiny_model, tmp_path / "reference")
    options: dict[str, Any] = {"reference_name": str(source)}
    fit(tiny_model, data(), tmp_path, **options)
    before = files(tmp_path)
    changed, run = data(), {}
    if change == "weights":
        model = AutoModelForCausalLM.from_pretrained(source)
        with torch.no_grad():
            model.model.norm.weight.mul_(2)
        model.save_pretrained(source)
    elif change == "max_length":
        changed = data(max_length=40, max_dropped_share=1.0)
    elif change == "precision":
        run = {"precision": "bf16-true"}
    elif change == "attention":
        options["attention"] = "sdpa"
    else:
        changed = data(train_split="train_prefs[:5]", val_split="test_prefs[:2]")
    module = fit(tiny_model, changed, tmp_path, run, **options)
    assert len(module.loads) == 2
    after = files(tmp_path)
    assert len(after) == 2 * len(before)
    assert before.items() <= after.items()


# promise: precomputed
# case: B12
@pytest.mark.slow
def test_a_killed_run_scores_only_what_is_missing(
    tiny_model: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of 2 pairs: 3 for training, 2 for validation. Of a killed run, 2 are there, a third that is
    truncated, and half of a fourth; the next run writes 3, and trains as with the frozen reference."""
    monkeypatch.setattr(store, "PART", 2)
    fit(tiny_model, data(), tmp_path)
    whole = files(tmp_path)
    assert len(whole) == 5
    os.truncate(list(whole)[2], 130)
    for path in list(whole)[3:]:
        path.unlink()
    (next(iter(whole)).parent / ".half.npy").write_bytes(b"half")
    module = fit(tiny_model, data(), tmp_path)
    after = {path: time for path, time in files(tmp_path).items() if path in whole}
    assert [path for path, time in after.items() if whole[path] == time] == list(whole)[:2]
    assert len(after) == 5
    assert module.losses_seen == fit(tiny_model, data(), tmp_path, reference="frozen").losses_seen


def test_all_ranks_share_the_files_whatever_others_have_written(tmp_path: Path) -> None:
    """7 files on 3 ranks: together each once, also for a rank that looks after another has begun."""
    store = Store(tmp_path, 6 * PART + 1)
    first = store.missing(0, 3)
    store.write(first[0], np.zeros((PART, 2)))
    parts = [*first, *store.missing(1, 3), *store.missing(2, 3)]
    assert sorted(part.start for part in parts) == [PART * number for number in range(7)]
    assert store.parts()[-1] == range(6 * PART, 6 * PART + 1)
    with pytest.raises(ValueError, match=r"lacks values that other nodes scored: `data.cache_dir` must be shared"):
        store.read()


# case: dpo-loss-02
@pytest.mark.slow
def test_named_validation_sets_have_values_too(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    """Two sets of 3 and 2 pairs: metrics of each as with the frozen reference, after an epoch of training."""
    rows = str(tmp_path / "rows")
    sets = {"one": Part(rows, "test_prefs"), "two": Part(rows, "other")}
    found = []
    for where in ("frozen", "precomputed"):
        module = fit(tiny_model, data(val_sets=sets), tmp_path, reference=where)
        found.append(next(metrics for metrics in module.logged[::-1] if "val/one/loss" in metrics))
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6)
    assert abs(found[1]["val/two/rewards/margins"]) > 1e-4
    assert found[1]["val/loss"] == pytest.approx((3 * found[1]["val/one/loss"] + 2 * found[1]["val/two/loss"]) / 5)


# case: dpo-loss-02
@pytest.mark.slow
def test_other_rows_after_training_get_values_of_the_reference_and_not_of_the_policy(
    tiny_model: Path, data: Data, tmp_path: Path
) -> None:
    """Validation on a split that was not scored yet: scored now, by the weights that the run began with."""
    new = data(val_split="other")
    found = []
    for where in ("frozen", "precomputed"):
        module = fit(tiny_model, data(), tmp_path, run={"max_epochs": 2}, reference=where)
        found += trainer(tmp_path).validate(module, datamodule=new, verbose=False)
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6)
    assert abs(found[1]["val/rewards/margins"]) > 1e-4


@pytest.mark.slow
def test_a_plain_trainer_needs_the_callback(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    """Without it, the first batch is refused with what to add; with it, losses are those of SmollitTrainer."""
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1}
    options |= {"default_root_dir": str(tmp_path), "enable_progress_bar": False, "use_distributed_sampler": False}
    settings: dict[str, Any] = {"reference": "precomputed", "learning_rate": 0.01, "schedule": "constant"}
    with pytest.raises(ValueError, match=r"add smollit\.training\.ReferenceScores\(\) to the callbacks"):
        Trainer(**options).fit(Watched(str(tiny_model), **settings), datamodule=data())
    module = Watched(str(tiny_model), **settings)
    Trainer(**options, callbacks=[ReferenceScores()]).fit(module, datamodule=data())
    assert module.losses_seen == fit(tiny_model, data(), tmp_path).losses_seen


def test_loaders_of_ones_own_can_not_be_scored_beforehand(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    """No tokenized pairs to score: refused before a model is loaded, with what to use instead."""
    pairs = data()
    pairs.prepare_data()
    pairs.setup("fit")
    module = Watched(str(tiny_model), reference="precomputed")
    with pytest.raises(ValueError, match=r"needs the data module's tokenized pairs before training.*use `frozen`"):
        trainer(tmp_path).fit(module, pairs.train_dataloader())
    assert module.loads == []


def test_values_that_are_not_finite_are_refused(tiny_model: Path, data: Data, tmp_path: Path) -> None:
    """A NaN in the weights of the loaded reference: the rows are named, and nothing is stored."""

    class Broken(DPOModule):
        def load(self, model_name: str, *args: Any, **options: Any) -> CausalLM:
            model = super().load(model_name, *args, **options)
            torch.nn.init.constant_(model.model.get_input_embeddings().weight, torch.nan)
            return model

    with pytest.raises(ValueError, match=r"log-probabilities of rows \[.*\] are not finite"):
        trainer(tmp_path).fit(Broken(str(tiny_model), reference="precomputed"), datamodule=data())
    assert not files(tmp_path)
