"""Averages of weights and a reference that follows the policy: by hand, and with a resume to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from callbacks import BEMA, SyncReference
from smollit.models.adapters import LoRA
from smollit.modules import DPOModule
from tests.training.conftest import assert_same_weights, stop_at


class Recorder(Callback):
    """The policy's weights after each optimizer step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights[trainer.global_step] = {n: p.detach().clone() for n, p in pl_module.policy.named_parameters()}


# promise: averages
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "adapter"), [("sft", None), ("dpo", None), ("sft", LoRA(r=2))])
def test_averages_are_resumed_and_kept(fit: Any, tmp_path: Path, kind: str, adapter: LoRA | None) -> None:
    """Average of decay 0.5: a_1 = w_1, a_s = (a_(s-1) + w_s) / 2. The run ends with the average of its last step; one
    that is stopped at step 3 ends in the same."""
    options = {"max_epochs": None, "max_steps": 6, "accumulate_grad_batches": 1, "kind": kind}
    options |= {"model": {"adapter": adapter}}
    recorder = Recorder()
    whole = fit(tmp_path / "whole", recorder, EMAWeightAveraging(decay=0.5), **options)
    assert whole.error is None
    average = recorder.weights[1]
    for step in range(2, 7):
        average = {name: (value + recorder.weights[step][name]) / 2 for name, value in average.items()}
    for name, value in average.items():
        torch.testing.assert_close(whole.weights[name], value)
    fit(tmp_path / "broken", EMAWeightAveraging(decay=0.5), stop_at(3), **options)
    resumed = fit(tmp_path / "broken", EMAWeightAveraging(decay=0.5), **options)
    assert resumed.error is None
    assert_same_weights(resumed.weights, whole.weights)
    saved = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    assert all(torch.equal(saved["state_dict"][f"policy.{name}"], value) for name, value in whole.weights.items())


@pytest.mark.slow
def test_a_run_that_averages_no_longer_goes_on_with_its_current_weights(fit: Any, tmp_path: Path) -> None:
    """Stopped at step 3 and resumed without the callback: the weights of a run that never had it."""
    options = {"max_epochs": None, "max_steps": 6, "accumulate_grad_batches": 1}
    fit(tmp_path / "broken", EMAWeightAveraging(decay=0.5), stop_at(3), **options)
    resumed = fit(tmp_path / "broken", **options)
    assert_same_weights(resumed.weights, fit(tmp_path / "plain", **options).weights)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, LoRA(r=2)])
def test_bema_is_its_sum_over_all_steps_and_is_resumed(fit: Any, tmp_path: Path, adapter: LoRA | None) -> None:
    """Updates at steps 3 and 5, with w_0 the weights of step 1. Unrolled, in fp64: EMA_5 = (1 - b_3) (1 - b_5) w_0
    + b_3 (1 - b_5) w_3 + b_5 w_5, b_t = (2 + t)^-0.5, and the average is EMA_5 + (2 + 5)^-0.3 (w_5 - w_0). Validation
    and checkpoints have it; a run that is stopped at step 4, between two updates, ends in the same."""
    options = {"max_epochs": None, "max_steps": 6, "accumulate_grad_batches": 1, "val_every_n_steps": 6}
    options |= {"model": {"adapter": adapter}}

    def bema() -> BEMA:
        return BEMA(2, update_starting_at_step=1, bias_power=0.3, lag=2)

    recorder = Recorder()
    whole = fit(tmp_path / "whole", recorder, bema(), **options)
    assert whole.error is None
    b3, b5 = 5**-0.5, 7**-0.5
    trained = [name for name, weight in whole.module.policy.named_parameters() if weight.requires_grad]
    for name in trained:
        w0, w3, w5 = (recorder.weights[step][name].double() for step in (1, 3, 5))
        expected = (1 - b3) * (1 - b5) * w0 + b3 * (1 - b5) * w3 + b5 * w5 + 7**-0.3 * (w5 - w0)
        torch.testing.assert_close(whole.weights[name], expected.float())
    in_training = whole.trainer.callback_metrics["val/loss"].item()
    saved = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    assert whole.trainer.validate(whole.module, whole.trainer.datamodule)[0]["val/loss"] == pytest.approx(in_training)
    assert all(torch.equal(value, whole.weights[name[7:]]) for name, value in saved["state_dict"].items())
    assert saved["bema"]["ema"].keys() == set(trained) and (len(saved["state_dict"]) == len(trained)) == bool(adapter)
    fit(tmp_path / "broken", bema(), stop_at(4), **options)
    resumed = fit(tmp_path / "broken", bema(), **options)
    assert resumed.error is None
    assert_same_weights(resumed.weights, whole.weights)
    again = fit(tmp_path / "whole", bema(), **options)  # a finished run makes no step, and has the average
    assert_same_weights(again.weights, whole.weights)
    late = fit(tmp_path / "late", BEMA(), **options)
    assert "6 optimizer steps, and BEMA updates its average at step 400 for the first time" in str(late.error)


@pytest.mark.parametrize("average", [lambda: EMAWeightAveraging(decay=0.5), lambda: BEMA(1)])
@pytest.mark.slow
def test_a_finished_run_is_extended_from_the_weights_that_were_trained(fit: Any, tmp_path: Path, average: Any) -> None:
    """3 steps, then 3 more, at a constant rate: as 6 steps, since the checkpoint holds both kinds of weights."""
    options = {"max_epochs": None, "accumulate_grad_batches": 1, "model": {"schedule": "constant"}}
    whole = fit(tmp_path / "whole", average(), max_steps=6, **options)
    fit(tmp_path / "parts", average(), max_steps=3, **options)
    extended = fit(tmp_path / "parts", average(), max_steps=6, **options)
    assert extended.error is None
    assert_same_weights(extended.weights, whole.weights)


# promise: averages
@pytest.mark.slow
@pytest.mark.parametrize("reference", ["frozen", "offloaded"])
def test_a_reference_that_follows_the_policy_is_resumed(fit: Any, tmp_path: Path, reference: str) -> None:
    """Every 2 of 5 steps, weight 0.25: r_2 = 0.75 r_0 + 0.25 w_2, r_4 = 0.75 r_2 + 0.25 w_4. Stopped at step 3, the run
    ends in the same policy; validation of a checkpoint uses the reference of its step."""
    options = {"max_epochs": None, "max_steps": 5, "accumulate_grad_batches": 1, "kind": "dpo"}
    options |= {"model": {"reference": reference}}
    recorder = Recorder()
    whole = fit(tmp_path / "whole", recorder, SyncReference(2, 0.25), **options)
    start = dict(DPOModule(whole.module.model_name).load(whole.module.model_name).named_parameters())
    for name, value in whole.module.reference.named_parameters():
        expected = 0.75 * (0.75 * start[name] + 0.25 * recorder.weights[2][name]) + 0.25 * recorder.weights[4][name]
        torch.testing.assert_close(value, expected)
    fit(tmp_path / "broken", SyncReference(2, 0.25), stop_at(3), **options)
    resumed = fit(tmp_path / "broken", SyncReference(2, 0.25), **options)
    assert_same_weights(resumed.weights, whole.weights)
    loaded = DPOModule.load_from_checkpoint(tmp_path / "whole/checkpoints/last.ckpt")
    assert_same_weights(loaded.reference.state_dict(), whole.module.reference.state_dict())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"reference": "precomputed"}, "SyncReference needs a DPOModule with `model.reference"),
        ({"reference": "offloaded", "adapter": LoRA(r=2)}, "and `model.adapter` trains a part"),
    ],
)
def test_a_reference_that_can_not_move_is_refused(fit: Any, tmp_path: Path, model: dict[str, Any], words: str) -> None:
    """Precomputed values belong to weights that stay, and a reference is a whole model."""
    run = fit(tmp_path, SyncReference(2), kind="dpo", model=model)
    assert isinstance(run.error, ValueError) and words in str(run.error)


@pytest.mark.parametrize("options", [{"update_every_n_steps": 0}, {"update_starting_at_step": 4}])
def test_an_average_of_no_step_is_refused(options: dict[str, int], make_run: Any) -> None:
    """4 steps, whose indices are 0 to 3: from index 4 on, the average would be the weights of the start."""
    with pytest.raises(ValueError, match="EMAWeightAveraging would average none of the 4 steps"):
        make_run([EMAWeightAveraging(**options)], max_steps=4).fit()
