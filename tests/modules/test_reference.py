"""The reference: where it is kept changes nothing, and it is what its source holds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from smollit.batch import Batch
from smollit.data.batching.collate import collate_pairs
from smollit.models.pretrained import weights_fingerprint
from smollit.modules import DPOModule
from smollit.modules.reference import ReferenceScorer

PAIRS = [
    {"prompt_ids": [1, 20 + i], "chosen_ids": [30 + i] * (1 + i % 3) + [2], "rejected_ids": [50 + i, 2], "row": i}
    for i in range(4)
]


def ready(folder: Path, **options: Any) -> DPOModule:
    module = DPOModule(str(folder), **options)
    module.configure_model()
    return module


@pytest.fixture
def batch() -> Batch:
    return collate_pairs([PAIRS[:2], PAIRS[2:]])


def test_an_offloaded_reference_scores_like_a_frozen_one(tiny_model: Path, batch: Batch) -> None:
    """To the bit, twice; its weights stay where they were, without gradients, and in eval mode."""
    frozen, offloaded = (ready(tiny_model, reference=mode) for mode in ("frozen", "offloaded"))
    places = [parameter.data_ptr() for parameter in offloaded.reference.parameters()]
    for _ in range(2):
        assert torch.equal(offloaded.scorer.logps(batch), frozen.scorer.logps(batch))
    assert [parameter.data_ptr() for parameter in offloaded.reference.parameters()] == places
    assert not any(parameter.requires_grad for parameter in offloaded.reference.parameters())
    offloaded.train()
    assert not any(part.training for part in offloaded.reference.modules())


def test_an_offloaded_reference_stays_on_the_cpu(tiny_model: Path) -> None:
    """On the meta device, which stands for any other: the frozen one goes there, the offloaded one waits."""
    for mode, place in (("frozen", "meta"), ("offloaded", "cpu")):
        module = ready(tiny_model, reference=mode)
        module.scorer.place(torch.device("meta"))
        assert {parameter.device.type for parameter in module.reference.parameters()} == {place}


@pytest.mark.parametrize("mode", ["frozen", "offloaded"])
def test_the_reference_has_no_part_in_what_lightning_moves_saves_and_trains(tiny_model: Path, mode: str) -> None:
    """20 parameters and 21 names, the policy's alone."""
    module = ready(tiny_model, reference=mode)
    assert len(list(module.parameters())) == 20
    assert len(module.state_dict()) == 21
    assert all(name.startswith("policy.") for name in module.state_dict())


def test_values_come_from_the_batch_if_they_were_precomputed(batch: Batch) -> None:
    """As they are, in the batch's order; a batch without is refused, and no model is asked for."""
    scorer = ReferenceScorer("anything", "precomputed")
    values = torch.randn(4, 2)
    assert torch.equal(scorer.logps(batch._replace(reference_logps=values.flatten())), values.flatten())
    with pytest.raises(ValueError, match=r"needs the reference's log-probabilities"):
        scorer.logps(batch)
    assert not scorer.has_model


def test_the_identity_is_that_of_the_files(tiny_model: Path) -> None:
    """Source and hash; another hash is refused, another path with the same hash is not; nothing kept, nothing asked."""
    scorer = ready(tiny_model).scorer
    fingerprint = weights_fingerprint(str(tiny_model))
    assert scorer.identity == {"source": str(tiny_model), "fingerprint": fingerprint}
    scorer.check_identity({"source": "elsewhere", "fingerprint": fingerprint})
    scorer.check_identity(None)
    with pytest.raises(ValueError, match=r"began with the reference there, and .* now holds other weights"):
        scorer.check_identity({"source": "there", "fingerprint": "0"})
