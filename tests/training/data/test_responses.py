"""Several rated responses to a prompt stand in one row: the prompt once, each response once, all pairs scored."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from transformers import AutoConfig, AutoModelForCausalLM

from smollit.commands.export.export import whole_weights
from smollit.data import PreferenceDataModule
from smollit.schedules import Constant
from tests.conftest import RATED, Run, rated_rows

NUM_PROMPTS = 3
Values = dict[str, float]
Start = Callable[..., Run]


def pairs_apart() -> Iterator[dict[str, Any]]:
    """The pairs of `rated_rows` in rows of their own: no two pairs of a prompt stand beside one another."""
    rows = rated_rows(NUM_PROMPTS)
    of_prompts = []
    for row in rows:
        best_first = sorted(row["completions"], key=lambda one: -one["score"])
        of_prompts.append(
            [
                {"prompt": row["instruction"], "chosen": better["response"], "rejected": worse["response"]}
                for n, better in enumerate(best_first)
                for worse in best_first[n + 1 :]
            ]
        )
    for pairs in zip(*of_prompts, strict=True):
        yield from pairs


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another random model for the reference: so that rewards are not 0."""
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def start(make_run: Callable[..., Run], tmp_path: Path, other_model: str) -> Start:
    """start(apart=..., folder=..., model={...}, data={...}, max_steps=...): a run on the rated rows, or on the same
    pairs apart. Each step has all pairs, so SGD with rate 1 moves weights by minus the gradient."""

    def make(*, apart: bool = False, folder: str = "run", **options: Any) -> Run:
        path = tmp_path / f"{'apart' if apart else 'rated'}.jsonl"
        rows = pairs_apart() if apart else rated_rows(NUM_PROMPTS)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        size = {"train_batch_size": 6 * NUM_PROMPTS if apart else NUM_PROMPTS}
        shape = {} if apart else {"columns": RATED, "pairs_of": "all"}
        common = {"train_split": "train", "val_split": "train", "max_length": 96} | size | shape
        run = make_run(
            kind="dpo",
            folder=folder,
            model={"reference_name": other_model, "optimizer": SGD, "learning_rate": 1.0} | options.pop("model", {}),
            data={"dataset": str(path)} | common | options.pop("data", {}),
            **{"max_steps": 1, "num_sanity_val_steps": 0} | options,
        )
        assert isinstance(run.data, PreferenceDataModule)
        return run

    return make


def logged(run: Run) -> Values:
    """What the step and its validation logged about pairs."""
    names = ("loss", "rewards", "logps")
    return {name: float(value) for name, value in run.trainer.logged_metrics.items() if name.split("/")[1] in names}


@pytest.fixture
def apart(start: Start) -> tuple[Values, dict[str, torch.Tensor]]:
    """Metrics and weights of the step on separate pairs."""
    run = start(apart=True, folder="apart").fit()
    return logged(run), whole_weights(run.module.policy)


# promise: shared-prompts
@pytest.mark.slow
def test_all_pairs_of_a_prompt_are_scored_like_separate_pairs(start: Start, apart: Any) -> None:
    """18 pairs of 3 prompts: metrics before the step, metrics of validation after it, and all weights, in every
    attention backend, packed or not, whichever way the reference is kept."""
    metrics, weights = apart
    of_training = [name for name in metrics if name.startswith("train/")]
    assert len(of_training) == 1 + 4 + 2  # the loss, four of rewards, two of log-probabilities; validation has more
    packed = {"packing": "on", "train_batch_size": 32}
    ways: list[dict[str, Any]] = [
        {"model": {"attention": "documents"}},
        {"model": {"attention": "eager"}},
        {"model": {"attention": "varlen"}},
        {"model": {"reference": "offloaded"}, "data": packed | {"pack_length": 512}},
        {"model": {"reference": "precomputed"}, "data": packed | {"pack_length": 512}},
        {"data": packed | {"pack_length": 72}},  # the six pairs of a prompt divided into several documents
    ]
    for number, way in enumerate(ways):
        run = start(folder=f"way{number}", **way).fit()
        assert (len(run.data.documents("train")) > NUM_PROMPTS) == (number == 5)
        found = logged(run)  # also the accuracies by score gap: here the responses have scores, apart they have none
        for name, value in metrics.items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (name, way)
        for name, weight in whole_weights(run.module.policy).items():
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6)


# promise: shared-prompts
@pytest.mark.slow
def test_four_responses_take_less_than_half_of_the_positions_of_their_pairs(start: Start) -> None:
    """p prompt tokens and responses of r1..r4: p - 1 + r1 + r2 + r3 + r4 positions. Six pairs take 6 (p - 1), and each
    response three times."""
    together, separate = start(), start(apart=True)
    for run in (together, separate):
        run.data.prepare_data()
        run.data.setup("fit")
    [batch], [alone] = (list(run.data.train_dataloader()) for run in (together, separate))
    assert batch.pairs.shape == alone.pairs.shape == (18, 2)
    assert [len(document.responses) for (document,) in batch.layout] == [4, 4, 4]
    assert alone.num_loss_tokens == 3 * batch.num_loss_tokens
    shared = sum(document.shared for (document,) in batch.layout)
    assert batch.num_tokens == shared + batch.num_loss_tokens
    assert alone.num_tokens == 6 * shared + 3 * batch.num_loss_tokens
    assert batch.num_tokens <= alone.num_tokens / 2
    assert sum(together.data.sampler().lengths) == batch.num_tokens


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_between_the_prompts_of_an_epoch(start: Start) -> None:
    """Epochs of 3 prompts, one per step: 4 steps at once, and 2 steps, a checkpoint, and 2 more."""
    options: dict[str, Any] = {"data": {"train_batch_size": 1}, "model": {"learning_rate": 0.1, "schedule": Constant()}}
    whole = start(folder="whole", max_steps=4, **options).fit()
    start(folder="halves", max_steps=2, **options).fit()
    resumed = start(folder="halves", max_steps=4, **options).fit(ckpt_path="last")
    assert resumed.trainer.global_step == 4
    found, expected = (whole_weights(run.module.policy) for run in (resumed, whole))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
