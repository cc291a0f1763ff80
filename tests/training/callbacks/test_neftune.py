"""NEFTune: noise of the right size in training alone, and a resume to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from callbacks import NEFTune
from callbacks.neftune import chat_lengths
from tests.training.conftest import assert_same_weights, stop_at


class Embedded(Callback):
    """What the embedding layer gave beyond its weights, in training and in validation, and the lengths of the chats."""

    def __init__(self) -> None:
        self.noise: dict[bool, list[Tensor]] = {True: [], False: []}
        self.lengths: list[list[int]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def look(layer: Any, args: Any, output: Tensor) -> None:
            self.noise[layer.training].append((output - layer.weight[args[0]]).detach()[0])

        pl_module.policy.model.get_input_embeddings().register_forward_hook(look)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.lengths.append([document.length for documents in batch.layout for document in documents])


@pytest.mark.parametrize("packing", ["off", "on"])
def test_the_noise_has_its_size_and_validation_has_none(fit: Any, tmp_path: Path, packing: str) -> None:
    """alpha / sqrt(L d) x u with d = 32: at most that, and half of it in the mean, for each chat of length L."""
    seen = Embedded()
    run = fit(tmp_path, NEFTune(alpha=3.0), seen, max_epochs=None, max_steps=2, data={"packing": packing})
    assert run.error is None and seen.noise[False] and not any(noise.any() for noise in seen.noise[False])
    assert len(seen.noise[True]) == len(seen.lengths) == 4
    for noise, lengths in zip(seen.noise[True], seen.lengths, strict=True):
        for part, length in zip(noise.split(lengths), lengths, strict=True):
            size = 3.0 / (length * 32) ** 0.5
            assert 0.95 * size < part.abs().max() < size * 1.0001
            assert part.abs().mean().item() == pytest.approx(size / 2, rel=0.1)


def test_the_length_is_that_of_the_chat() -> None:
    """Chats of 3 and 2 tokens in one row; padding, whose position is 0, is chats of one token."""
    starts = torch.tensor([[1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]).bool()
    assert chat_lengths(starts).tolist() == [[3, 3, 3, 2, 2], [3, 3, 3, 1, 1]]


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_noise(fit: Any, tmp_path: Path) -> None:
    """5 steps at once, and stopped at step 3: the same weights, to the bit; without the noise, others."""
    options = {"max_epochs": None, "max_steps": 5, "accumulate_grad_batches": 1}
    whole = fit(tmp_path / "whole", NEFTune(), **options)
    fit(tmp_path / "broken", NEFTune(), stop_at(3), **options)
    resumed = fit(tmp_path / "broken", NEFTune(), **options)
    assert resumed.error is None
    assert_same_weights(resumed.weights, whole.weights)
    plain = fit(tmp_path / "plain", **options)
    assert any(not torch.equal(plain.weights[name], value) for name, value in whole.weights.items())


def test_pairs_get_no_noise(fit: Any, tmp_path: Path) -> None:
    """Policy and reference would differ by it."""
    assert "NEFTune needs an SFTModule" in str(fit(tmp_path, NEFTune(), kind="dpo").error)
    with pytest.raises(ValueError, match="above 0, got 0"):
        NEFTune(0)
