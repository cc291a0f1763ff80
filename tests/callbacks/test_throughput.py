"""Throughput: totals are what a count by hand gives, and speeds are over training time."""

import time
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import Throughput
from tests.conftest import Run

NAMES = ("tokens_per_second", "trained_tokens_per_second", "seen_tokens", "trained_tokens")


def by_hand(run: Run) -> dict[str, int]:
    """One epoch. Seen: length - 1 of each chat, because the last token predicts nothing; trained: the loss spans."""
    examples = run.data.examples["train"]
    seen = sum(len(example["input_ids"]) - 1 for example in examples)
    trained = sum(sum(example["spans"][1::2]) - sum(example["spans"][::2]) for example in examples)
    return {"seen_tokens": seen, "trained_tokens": trained}


def logged(run: Run, name: str) -> list[tuple[int, float]]:
    """(step, value) of everything that TensorBoard has under a name."""
    events = EventAccumulator(str(run.folder))
    events.Reload()
    return [(scalar.step, scalar.value) for scalar in events.Scalars(name)]


# promise: throughput
# case: metrics-15
@pytest.mark.slow
def test_an_epoch_counts_every_token_once_and_no_padding_and_a_resume_continues(make_run: Any) -> None:
    """8 chats of different lengths in padded batches of 2. One epoch counts each once, a resume to a second one twice;
    the checkpoint holds the same numbers."""
    first, second = Throughput(), Throughput()
    run = make_run([first], max_epochs=1).fit()
    expected = by_hand(run)
    assert first.state_dict() == expected
    assert logged(run, "throughput/seen_tokens")[-1][1] == expected["seen_tokens"]
    run = make_run([second], max_epochs=2).fit(ckpt_path="last")
    assert second.state_dict() == {name: 2 * count for name, count in expected.items()}
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert second.state_dict() in checkpoint["callbacks"].values()


class Watch(Callback):
    """Notes the number of seen tokens after each micro-batch."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.seen: list[tuple[int, int]] = []  # tokens of the micro-batch, total

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((batch.num_tokens, self.throughput.state_dict()["seen_tokens"]))


def test_tokens_count_when_their_step_is_done(make_run: Any) -> None:
    """2 micro-batches per step: a checkpoint between them holds finished steps only, since a resume repeats both."""
    throughput = Throughput()
    watch = Watch(throughput)
    make_run([throughput, watch], max_steps=2, accumulate_grad_batches=2).fit()
    (a, b, c, d), totals = zip(*watch.seen, strict=True)
    assert totals == (0, a + b, a + b, a + b + c + d)


class SlowValidation(Callback):
    """Takes 0.2 seconds per validation, and notes the time of the whole run."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start, self.validations = time.monotonic(), 0

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            time.sleep(0.2)
            self.validations += 1

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = time.monotonic() - self.start


@pytest.mark.slow
def test_validation_takes_no_training_time(make_run: Any) -> None:
    """4 validations of 0.2 seconds or more, and one log, at step 4: tokens / (tokens per second) is at most the time of
    the run without them."""
    slow = SlowValidation()
    run = make_run([Throughput(), slow], max_epochs=1, val_every_n_steps=1, log_every_n_steps=4).fit()
    assert slow.validations == 4
    ((_, speed),) = logged(run, "throughput/tokens_per_second")
    assert 0 < by_hand(run)["seen_tokens"] / speed < slow.seconds - 4 * 0.2


def test_it_logs_at_the_steps_at_which_the_losses_are_logged(make_run: Any) -> None:
    """8 rows in 4 micro-batches, 2 per step, 2 epochs: steps 1 to 4, logged at 2 and 4."""
    run = make_run([Throughput()], kind="dpo", max_epochs=2, accumulate_grad_batches=2, log_every_n_steps=2).fit()
    for name in ("train/loss", "memory/peak_gib", *(f"throughput/{name}" for name in NAMES)):
        steps, values = zip(*logged(run, name), strict=True)
        assert steps == (2, 4), name
        assert min(values) > 0


def test_a_second_run_of_the_same_callback_starts_at_zero(make_run: Any) -> None:
    """One callback object in two runs, as in a notebook: the totals are those of one run."""
    callback = Throughput()
    make_run([callback], max_steps=2, folder="first").fit()
    once = callback.state_dict()
    make_run([callback], max_steps=2, folder="second").fit()
    assert callback.state_dict() == once
