"""Throughput: totals are what a count by hand gives, and speeds are over training time."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import Throughput
from smollit.data.batching.collate import collate_chats


def batch_of_7_seen_and_4_trained() -> Any:
    """2 rows x 5 positions; the second has 2 tokens, so 3 pads; 4 targets."""
    long = {"input_ids": [1, 2, 3, 4, 5, 6], "spans": [3, 6], "row": 0}
    short = {"input_ids": [1, 2, 3], "spans": [2, 3], "row": 1}
    return collate_chats([[long], [short]])


class Loop:
    """The parts of a trainer and a module that the callback touches; 2 micro-batches per step, logs every step."""

    def __init__(self, world_size: int = 1) -> None:
        self.accumulating = False
        self.global_step = 1
        self.log_every_n_steps = 1
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(_should_accumulate=lambda: self.accumulating))
        self.strategy = SimpleNamespace(
            reduce=lambda value, reduce_op: value * world_size if reduce_op == "sum" else value
        )
        self.reports: list[dict[str, float]] = []
        self.module = SimpleNamespace(device=torch.device("cpu"), report=self.reports.append)

    def run(self, callback: Throughput, accumulating: bool = False) -> None:
        """One micro-batch."""
        self.accumulating = accumulating
        batch = batch_of_7_seen_and_4_trained()
        callback.on_train_batch_start(self, self.module, batch, 0)  # type: ignore[arg-type]
        callback.on_train_batch_end(self, self.module, None, batch, 0)  # type: ignore[arg-type]


# case: metrics-15
def test_padding_is_not_counted() -> None:
    """2 x 5 positions with 3 pads and 4 targets: +7 seen, +4 trained; twice: 14 and 8."""
    callback, loop = Throughput(), Loop()
    callback.on_train_start(loop, loop.module)  # type: ignore[arg-type]
    for expected in (1, 2):
        loop.run(callback)
        assert loop.reports[-1]["throughput/seen_tokens"] == 7 * expected
        assert loop.reports[-1]["throughput/trained_tokens"] == 4 * expected


def test_ranks_are_summed() -> None:
    """3 ranks with equal batches: 21 seen, 12 trained."""
    callback, loop = Throughput(), Loop(world_size=3)
    callback.on_train_start(loop, loop.module)  # type: ignore[arg-type]
    loop.run(callback)
    assert callback.state_dict() == {"seen_tokens": 21, "trained_tokens": 12}


def test_tokens_count_when_their_step_is_done() -> None:
    """2 micro-batches a step: a checkpoint between them holds the finished step only, since both are done again."""
    callback, loop = Throughput(), Loop()
    callback.on_train_start(loop, loop.module)  # type: ignore[arg-type]
    counts = []
    for accumulating in (True, False, True):
        loop.run(callback, accumulating)
        counts.append(callback.state_dict()["seen_tokens"])
    assert counts == [0, 14, 14]
    assert len(loop.reports) == 1


def test_validation_takes_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts at 100 s, validation from 110 s, next batch at 200 s, log at 205 s: 14 tokens in 15 s, not in 105 s."""
    callback, loop = Throughput(), Loop()
    callback.on_train_start(loop, loop.module)  # type: ignore[arg-type]
    clock = iter([100.0, 110.0, 200.0, 205.0, 205.0])
    monkeypatch.setattr("callbacks.throughput.time.monotonic", lambda: next(clock))
    loop.run(callback, accumulating=True)
    callback.on_validation_start(loop, loop.module)  # type: ignore[arg-type]
    loop.run(callback)
    assert loop.reports[-1]["throughput/tokens_per_second"] == pytest.approx(14 / 15)
    assert loop.reports[-1]["throughput/trained_tokens_per_second"] == pytest.approx(8 / 15)


# case: metrics-15
def test_an_epoch_counts_every_token_once_and_a_resume_goes_on(make_run: Any) -> None:
    """Seen: length - 1 of each chat (the last token predicts nothing); trained: the spans; two epochs: twice."""
    first, second = Throughput(), Throughput()
    run = make_run([first], max_epochs=1).fit()
    examples = run.data.examples["train"]
    seen = sum(len(example["input_ids"]) - 1 for example in examples)
    trained = sum(sum(example["spans"][1::2]) - sum(example["spans"][::2]) for example in examples)
    assert first.state_dict() == {"seen_tokens": seen, "trained_tokens": trained}
    run = make_run([second], max_epochs=2).fit(ckpt_path="last")
    assert second.state_dict() == {"seen_tokens": 2 * seen, "trained_tokens": 2 * trained}
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert {"seen_tokens": 2 * seen, "trained_tokens": 2 * trained} in checkpoint["callbacks"].values()


def test_it_logs_at_the_steps_at_which_the_losses_are_logged(make_run: Any) -> None:
    """8 rows in 4 micro-batches, 2 per step, 2 epochs: steps 1 to 4, logged at 2 and 4."""
    run = make_run([Throughput()], kind="dpo", max_epochs=2, accumulate_grad_batches=2, log_every_n_steps=2).fit()
    events = EventAccumulator(str(run.folder))
    events.Reload()
    names = ("tokens_per_second", "trained_tokens_per_second", "seen_tokens", "trained_tokens")
    for name in ("train/loss", "memory/peak_gib", *(f"throughput/{name}" for name in names)):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [2, 4], name
        assert all(scalar.value > 0 for scalar in scalars)


def test_a_second_run_of_the_same_callback_starts_at_zero(make_run: Any) -> None:
    """One callback object in two runs, as in a notebook: the totals are those of one run."""
    callback = Throughput()
    make_run([callback], max_steps=2, folder="first").fit()
    once = callback.state_dict()
    make_run([callback], max_steps=2, folder="second").fit()
    assert callback.state_dict() == once
