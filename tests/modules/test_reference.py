"""The reference: where it is kept changes nothing, and it is what its source holds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from smollit.batch import Batch
from smollit.losses import DPO, LDDPO
from smollit.models.adapters import LoRA
from smollit.models.pretrained import weights_fingerprint
from smollit.modules import DPOModule
from tests.conftest import batch_of, example_pairs


def ready(folder: Path, **options: Any) -> DPOModule:
    module = DPOModule(str(folder), **options)
    module.configure_model()
    return module


@pytest.fixture
def batch() -> Batch:
    return batch_of(example_pairs(4), packed=True)


def test_an_offloaded_reference_scores_like_a_frozen_one(tiny_model: Path, batch: Batch) -> None:
    """To the bit, twice; its weights stay where they were, without gradients, and in eval mode."""
    frozen, offloaded = (ready(tiny_model, reference=mode) for mode in ("frozen", "offloaded"))
    addresses = [parameter.data_ptr() for parameter in offloaded.reference.parameters()]
    for _ in range(2):
        assert torch.equal(offloaded.reference_logps(batch), frozen.reference_logps(batch))
    assert [parameter.data_ptr() for parameter in offloaded.reference.parameters()] == addresses
    assert not any(parameter.requires_grad for parameter in offloaded.reference.parameters())
    offloaded.train()
    assert not any(part.training for part in offloaded.reference.modules())


def test_an_offloaded_reference_stays_on_the_cpu(tiny_model: Path) -> None:
    """On the meta device, which stands for any other: the frozen one moves there, the offloaded one does not."""
    for mode, device in (("frozen", "meta"), ("offloaded", "cpu")):
        module = ready(tiny_model, reference=mode)
        module.to("meta")
        module.on_validation_start()
        assert {parameter.device.type for parameter in module.policy.parameters()} == {"meta"}
        assert {parameter.device.type for parameter in module.reference.parameters()} == {device}


@pytest.mark.parametrize("mode", ["frozen", "offloaded"])
def test_the_reference_is_not_among_what_lightning_moves_saves_and_trains(tiny_model: Path, mode: str) -> None:
    """20 parameters and 21 names, the policy's alone."""
    module = ready(tiny_model, reference=mode)
    assert len(list(module.parameters())) == 20
    assert len(module.state_dict()) == 21
    assert all(name.startswith("policy.") for name in module.state_dict())


def test_values_come_from_the_batch_if_they_were_precomputed(tiny_model: Path, batch: Batch) -> None:
    """As they are, in the batch's order; a batch without is refused, and no model is loaded."""
    module, values = ready(tiny_model, reference="precomputed"), torch.randn(8)
    assert torch.equal(module.reference_logps(batch._replace(reference_logps=values)), values)
    with pytest.raises(ValueError, match=r"needs the reference's log-probabilities in each batch"):
        module.reference_logps(batch)
    assert not module.scorer.has_model


# case: checkpoint-02
@pytest.mark.parametrize("mode", ["frozen", "precomputed"])
def test_another_reference_is_refused(tiny_model: Path, mode: str) -> None:
    """A checkpoint has source and hash of the weights; another path with the same weights is fine, and so is a
    checkpoint that has neither."""
    module, checkpoint = ready(tiny_model, reference=mode), dict[str, Any]()
    module.on_load_checkpoint(checkpoint)
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["reference"] == {"source": str(tiny_model), "fingerprint": weights_fingerprint(str(tiny_model))}
    module.on_load_checkpoint({"reference": checkpoint["reference"] | {"source": "elsewhere"}})
    with pytest.raises(ValueError, match=r"began with the reference there, and .* now holds other weights"):
        module.on_load_checkpoint({"reference": {"source": "there", "fingerprint": "0"}})


def test_a_loss_of_single_tokens_refuses_values_of_whole_responses(tiny_model: Path, batch: Batch) -> None:
    """With its adapter off, the policy gives them, as a frozen model does: alpha 1 is DPO."""
    with pytest.raises(ValueError, match=r"LDDPO, which reads .* set it to `frozen`"):
        DPOModule(str(tiny_model), loss=LDDPO(), reference="precomputed")
    for options in ({}, {"adapter": LoRA(r=2)}, {"reference": "offloaded"}):
        modules = [ready(tiny_model, loss=loss, **options) for loss in (LDDPO(alpha=1.0), DPO())]
        ours, plain = (module.step(batch, "train")[0] for module in modules)
        torch.testing.assert_close(ours, plain)
