"""On a CUDA device: fsdp, the mixed precisions, and clipping by norm; one step of each, against fp32 on the same GPU.

Run with `python -m pytest -m gpu tests/gpu`; not among the default tests.
"""

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import SGD

from smollit.batch import Batch
from smollit.commands.export.export import whole_weights
from smollit.data.batching.collate import collate_chats, collate_pairs
from smollit.models import CausalLM
from smollit.models.sharding import decoder_layers, unwrap
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from tests.conftest import batch_of, chats_of, example_chats, example_pairs, fit_batches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS = ("sft", "dpo")
# Of the loss of the first step, relative to fp32's: bf16 has 8 bits, fp16 11.
TOLERANCE = {"32-true": 1e-5, "bf16-mixed": 2e-2, "bf16-true": 2e-2, "16-mixed": 5e-3}
CLIP, LEARNING_RATE = 0.01, 0.05
EXAMPLES = {"sft": example_chats(), "dpo": example_pairs()}


class Watched:
    """Notes each micro-batch's loss, and the weights at the end."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)  # type: ignore[misc]
        self.losses_seen = [*getattr(self, "losses_seen", []), float(loss) * self.nominal_count]  # type: ignore
        return loss

    def on_train_end(self) -> None:
        # Before Lightning moves everything back to the CPU, where shards can't be gathered.
        self.weights_seen = whole_weights(self.policy)  # type: ignore[attr-defined]


class WatchedSFT(Watched, SFTModule):
    pass


class WatchedDPO(Watched, DPOModule):
    pass


def fit(
    kind: str, model: Path, folder: Path, precision: str, strategy: str = "auto", **options: Any
) -> FineTuningModule:
    """One optimizer step over two micro-batches, clipped at a norm of 0.01, and the export's weights."""
    module = (WatchedSFT if kind == "sft" else WatchedDPO)(
        model_name=str(model),
        optimizer=lambda params: SGD(params),
        learning_rate=LEARNING_RATE,
        schedule="constant",
        chunk_size=3,
        gradient_checkpointing=True,
    )
    examples = EXAMPLES[kind]
    fit_batches(
        module,
        [batch_of(examples[:3]), batch_of(examples[3:], packed=True)],
        folder,
        accelerator="gpu",
        precision=precision,
        strategy=strategy,
        accumulate_grad_batches=2,
        gradient_clip_val=CLIP,
        **options,
    )
    return module


def in_two_sequences(kind: str) -> Batch:
    """8 chats or pairs, packed into sequences of 5 and 3, on the GPU."""
    collate = collate_chats if kind == "sft" else collate_pairs
    return move_data_to_device(collate([EXAMPLES[kind][:5], EXAMPLES[kind][5:]]), torch.device("cuda"))


# case: precision-02, precision-04
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_precisions_have_the_loss_of_fp32(kind: str, precision: str, tiny_model: Path, tmp_path: Path) -> None:
    """Losses of two micro-batches within 2 % (bf16) or 0.5 % (fp16) of fp32's; weights fp32 in mixed precision."""
    expected = fit(kind, tiny_model, tmp_path, "32-true").losses_seen  # type: ignore[attr-defined]
    module = fit(kind, tiny_model, tmp_path, precision)
    assert module.losses_seen == pytest.approx(expected, rel=TOLERANCE[precision])  # type: ignore[attr-defined]
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {parameter.dtype for parameter in module.policy.parameters()} == {dtype}
    rotary = unwrap(module.policy).model.base_model.rotary_emb  # type: ignore[union-attr]
    assert rotary.inv_freq.dtype == torch.float32


# case: dpo-loss-04, dpo-loss-14
@pytest.mark.parametrize(
    ("strategy", "precision"),
    [each for each in product(["auto", "fsdp", "fsdp2"], TOLERANCE) if each != ("fsdp2", "16-mixed")],
)  # fsdp2 has no scaler
def test_the_first_loss_is_log_two(strategy: str, precision: str, tiny_model: Path, tmp_path: Path) -> None:
    """Policy and reference round alike: 3 pairs cost 3 ln 2, to 1e-5, in every precision."""
    module = fit("dpo", tiny_model, tmp_path, precision, strategy)
    assert module.losses_seen[0] / 3 == pytest.approx(math.log(2), abs=1e-5)  # type: ignore[attr-defined]


# case: fsdp-01, fsdp-02
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_sharded_steps_are_those_of_one_device(kind: str, strategy: str, tiny_model: Path, tmp_path: Path) -> None:
    """fp32, clipped at a norm of 0.01 far below the gradient's: weights to 1e-5, and the norm before clipping."""
    expected = fit(kind, tiny_model, tmp_path, "32-true")
    module = fit(kind, tiny_model, tmp_path, "32-true", strategy)
    assert module.gradient_norm is not None
    assert expected.gradient_norm is not None
    assert float(module.gradient_norm) == pytest.approx(float(expected.gradient_norm), rel=1e-4)
    assert float(module.gradient_norm) > CLIP
    found, wanted = module.weights_seen, expected.weights_seen  # type: ignore[attr-defined]
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


# case: fsdp-02, fsdp-04
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_fsdp_wraps_layers_and_keeps_frequencies_in_fp32(precision: str, tiny_model: Path, tmp_path: Path) -> None:
    """2 layers and the root, for policy and reference; head and embedding are one parameter."""
    module = fit("dpo", tiny_model, tmp_path, precision, "fsdp")
    for model in (module.policy, module.reference):  # type: ignore[attr-defined]
        units = [part for part in model.modules() if isinstance(part, FullyShardedDataParallel)]
        assert len(units) == 3
        inner = unwrap(model)
        assert all(isinstance(layer, FullyShardedDataParallel) for layer in decoder_layers(inner))
        assert inner.model.base_model.rotary_emb.inv_freq.dtype == torch.float32
        assert all(unit.mixed_precision.reduce_dtype == torch.float32 for unit in units)
    assert not any(part.training for part in module.reference.modules())  # type: ignore[attr-defined]


# case: checkpoint-02
@pytest.mark.parametrize("strategy", ["auto", "fsdp", "fsdp2"])
def test_checkpoints_are_whole_and_safe_to_read(strategy: str, tiny_model: Path, tmp_path: Path) -> None:
    """One file, weights_only=True, with the 21 keys of the policy and whole tensors."""
    fit("dpo", tiny_model, tmp_path, "32-true", strategy, enable_checkpointing=True)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    assert len(state) == 21
    assert state["policy.model.lm_head.weight"].shape == state["policy.model.model.embed_tokens.weight"].shape


# case: perf-03
def test_memory_stays_below_the_logits(tiny_model: Path) -> None:
    """One chat of 1,000 positions, 2,048 words, chunks of 8: scoring and its backward pass stay below the 8 MB of fp32
    logits on top of what the layers take."""
    module = SFTModule(model_name=str(tiny_model), chunk_size=8)
    module.configure_model()
    module.cuda()
    batch = move_data_to_device(batch_of(chats_of([5] * 1001)), torch.device("cuda"))
    policy = unwrap(module.policy)
    peaks = []
    for chunk_size in (8, 1000):
        policy.chunk_size = chunk_size
        module.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        policy(batch).sums.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] < peaks[1] - 1000 * 2048 * 4


def scores_and_gradients(model: Path, attention: Any, dtype: torch.dtype, batch: Batch) -> dict[str, Tensor]:
    policy = CausalLM(str(model), attention=attention, dtype=dtype).cuda()
    scores = policy(batch)
    scores.sums.sum().backward()
    found = {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}
    return {"logps": scores.logps.detach(), **found}


# case: packing-01, packing-03
@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_packs_like_single_sequences(kind: str, attention: Any, tiny_model: Path) -> None:
    """8 chats or pairs in sequences of 5 and 3, against each alone by `eager`: log-probabilities to 1e-4 and
    gradients to 1e-3 in fp32."""
    packed, alone = in_two_sequences(kind), move_data_to_device(batch_of(EXAMPLES[kind]), torch.device("cuda"))
    expected = scores_and_gradients(tiny_model, "eager", torch.float32, alone)
    found = scores_and_gradients(tiny_model, attention, torch.float32, packed)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found.pop("logps"), expected.pop("logps"), rtol=1e-4, atol=1e-4)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_micro_batch_waits_for_the_device(kind: str, tiny_model: Path) -> None:
    """Two training steps with their backward passes under torch's own check: any synchronisation is an error."""
    module = (SFTModule if kind == "sft" else DPOModule)(str(tiny_model), gradient_checkpointing=True)
    module.configure_model()
    module.cuda()
    module.on_validation_start()
    batch = in_two_sequences(kind)
    module.training_step(batch, 0).backward()  # once before: kernels are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.training_step(batch, 1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_offloaded_reference_scores_on_the_device(tiny_model: Path) -> None:
    """As the frozen one does; its weights are on the CPU before and after."""
    batch = in_two_sequences("dpo")
    found = []
    for mode in ("frozen", "offloaded"):
        module = DPOModule(str(tiny_model), reference=mode)  # type: ignore[arg-type]
        module.configure_model()
        module.scorer.place(torch.device("cuda"))
        found.append(module.scorer.logps(batch))
        device = "cuda" if mode == "frozen" else "cpu"
        assert {parameter.device.type for parameter in module.reference.parameters()} == {device}
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
