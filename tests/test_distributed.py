"""Two CPU processes against one: ddp and fsdp2 make the steps, metrics and checkpoints of a single process.

This file is also the program that the two processes run, once, for all tests below: each writes what it found to
a file, and the tests compare.
"""

import json
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.amp import GradScaler
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from callbacks import Throughput
from smollit.batch import Batch
from smollit.commands.export.export import whole_weights
from smollit.data import UltraFeedbackDataModule
from smollit.data.batching.collate import collate_chats, collate_pairs, unpacked
from smollit.functional.pairs import Pairs
from smollit.metrics import preference_metrics, values
from smollit.models.adapters import LoRA
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer
from smollit.training.ledger import FILE as LEDGER
from smollit.training.ledger import read_ledger
from smollit.training.scores import scorer, store
from tests.conftest import RATED, example_chats, example_pairs, rated_rows, run_two_ranks

pytestmark = pytest.mark.slow  # two processes train 16 times
KINDS = ("sft", "dpo")
STRATEGIES = ("ddp", "fsdp2")
TRAIN = ((range(0, 1), range(1, 3)), (range(3, 6), range(6, 8)))  # examples of each rank's two micro-batches
VAL = ((range(0, 2), range(2, 3)), (range(3, 5), range(0)))  # 5 rows: rank 1's last batch is empty
CLIP = 0.01
CHATS, PAIRS = example_chats(), example_pairs()
TIMES = ("train/epoch", "per_second", "memory/")  # names of metrics that differ from run to run, in part
Found = dict[str, Any]


class Watched:
    """Notes each micro-batch's loss, the metrics that are logged, and the norm of each step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)  # type: ignore[misc]
        self.losses_seen = [*getattr(self, "losses_seen", []), loss.item() * self.nominal_count]  # type: ignore[attr-defined]
        return loss

    def add_adapter(self, model: Any) -> None:
        torch.manual_seed(0)  # it starts at random
        super().add_adapter(model)  # type: ignore[misc]

    def report(self, named: dict[str, Any]) -> None:
        self.logged = getattr(self, "logged", {}) | {name: float(value) for name, value in named.items()}
        super().report(named)  # type: ignore[misc]


class WatchedSFT(Watched, SFTModule):
    pass


class WatchedDPO(Watched, DPOModule):
    pass


def make(kind: str, model: str, adam: bool = False, **options: Any) -> FineTuningModule:
    optimizer = (lambda params: AdamW(params, weight_decay=0.1)) if adam else (lambda params: SGD(params))
    module = WatchedSFT if kind == "sft" else WatchedDPO
    rate = 1e-4 if adam else 0.05
    # chunks of 3 tokens, and layers that are recomputed: what breaks ddp and fsdp2 if it is done wrong
    options = {"learning_rate": rate, "schedule": "constant", "chunk_size": 3, "gradient_checkpointing": True} | options
    return module(model, optimizer=optimizer, **options)


def loader(kind: str, parts: Any) -> DataLoader[Batch]:
    examples, collate = (CHATS, collate_chats) if kind == "sft" else (PAIRS, collate_pairs)
    return DataLoader([collate(unpacked([examples[i] for i in part])) for part in parts], batch_size=None)  # type: ignore


def run(
    module: FineTuningModule, strategy: str, rank: int | None, folder: Path, resume: bool = False, **options: Any
) -> None:
    """Fit; rank None is the single process that has all examples, in one batch per step."""
    kind = "sft" if isinstance(module, SFTModule) else "dpo"
    train, val = ([range(8)], [range(5)]) if rank is None else (TRAIN[rank], VAL[rank])
    options = {"max_epochs": 2, "enable_checkpointing": False, "logger": False} | options
    trainer = SmollitTrainer(
        default_root_dir=str(folder),
        accelerator="cpu",
        devices=1 if rank is None else 2,
        strategy=strategy,
        accumulate_grad_batches=len(train),
        enable_progress_bar=False,
        log_every_n_steps=2,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # each rank has its own loader
        **{"callbacks": [Throughput()]} | options,
    )
    path = str(folder / "checkpoints" / "last.ckpt") if resume else None
    trainer.fit(module, loader(kind, train), loader(kind, val), ckpt_path=path)


class EndsAfterThree(Callback):
    """Ends a run after 3 epochs: if more are planned, the metrics of its last step wait for the next log."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 2


def three_of_four() -> Found:
    """Options of a run that ends so."""
    return {"max_epochs": 4, "callbacks": [Throughput(), EndsAfterThree()]}


def summary(module: FineTuningModule) -> Found:
    return {
        "weights": {name: tensor.clone() for name, tensor in whole_weights(module.policy).items()},
        "losses": module.losses_seen,
        "logged": module.logged,
        "norm": float(module.gradient_norm),  # type: ignore[arg-type]
    }


# ---- what each of the two processes does


def work(rank: int, model: str, folder: Path) -> None:
    found: Found = {}
    for kind in KINDS:
        for strategy in STRATEGIES:
            name = f"{kind}-{strategy}"
            module = make(kind, model)
            run(module, strategy, rank, folder / name, gradient_clip_val=CLIP)
            found[name] = summary(module)
            if strategy == "fsdp2":
                found[f"{name}-sharded"] = sharded_parts(module)
            module = make(kind, model, adam=True)
            run(
                module,
                strategy,
                rank,
                folder / f"{name}-adam",
                enable_checkpointing=True,
                logger=True,
                **three_of_four(),
            )
            found[f"{name}-adam"] = summary(module)
    for strategy in STRATEGIES:
        module = make("dpo", model, adapter=LoRA(r=4))
        run(module, strategy, rank, folder / f"lora-{strategy}", enable_checkpointing=True)
        found[f"lora-{strategy}"] = summary(module)
        counter = Reductions()
        run(make("sft", model), strategy, rank, folder / "reductions", callbacks=[counter])
        found[f"reductions-{strategy}"] = counter.counts
    found["4 bits"] = quantized_run(model, "ddp", rank, folder / "quantized")
    found["scaled"] = scaled_run(rank, model, folder / "scaled")
    module = make("sft", model)
    run(module, "fsdp2", rank, folder / "value", gradient_clip_val=1e-4, gradient_clip_algorithm="value")
    found["value"] = summary(module)
    module = make("dpo", model, adam=True)
    run(module, "fsdp2", rank, folder / "dpo-fsdp2-adam", max_epochs=4, resume=True)
    found["resumed"] = summary(module)
    found["precomputed"] = precomputed_run(model, folder / "precomputed", devices=2)
    found["metrics"] = metrics_of(rank)
    torch.save(found, folder / f"rank{rank}.pt")


class Reductions(Callback):
    """Counts the reductions of gradients in each micro-batch, as torch's profiler sees gloo's: those of more than a
    single number, which says whether a rank was asked to stop."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.profiler.start()

    def on_after_backward(self, *args: Any) -> None:
        self.profiler.stop()
        reduced = [event.input_shapes for event in self.profiler.events() or [] if event.name == "gloo:all_reduce"]
        self.counts.append(sum(shapes != [[]] for shapes in reduced))


def quantized_run(model: str, strategy: str, rank: int | None, folder: Path) -> dict[str, Tensor]:
    """DPO with LoRA on weights in 4 bits; the weights of the adapter."""
    if find_spec("bitsandbytes") is None:
        return {}
    module = make("dpo", model, adapter=LoRA(r=4), quantize="nf4")
    run(module, strategy, rank, folder)
    return {name: tensor for name, tensor in summary(module)["weights"].items() if "lora_" in name}


def scaled_run(rank: int, model: str, folder: Path) -> Found:
    """ddp in fp16, with a scale of the loss that is too large at first."""
    scaler = GradScaler("cpu", init_scale=2.0**30)
    module = make("sft", model)
    run(module, "ddp", rank, folder, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], max_epochs=12)
    return summary(module) | {"scale": scaler.get_scale(), "overflowed": module.lost_steps.overflowed}


def precomputed_run(model: str, folder: Path, devices: int) -> Found:
    """DPO on all six pairs of prompts with four responses, whose reference was scored beforehand in files of 2 pairs;
    which of them this rank wrote."""
    written: list[str] = []

    class Noting(store.Store):
        def write(self, part: range, values: Any) -> None:
            written.append(f"{self.num_examples} {part.start}")
            super().write(part, values)

    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / f"rows{os.getpid()}.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rated_rows(7)))
    data = UltraFeedbackDataModule(
        str(rows),
        columns=RATED,
        pairs_of="all",
        train_split="train[:5]",
        val_split="train[5:]",
        tokenizer_name=model,
        max_length=64,
        max_dropped_share=1.0,
        train_batch_size=4 // devices,
        cache_dir=str(folder / "cache"),
    )
    module = make("dpo", model, reference="precomputed")
    trainer = SmollitTrainer(
        default_root_dir=str(folder),
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "PART", 2)
        patch.setattr(scorer, "Store", Noting)
        trainer.fit(module, datamodule=data)
    sizes = [len(data.examples[split]) for split in ("train", "val")]
    return {"weights": whole_weights(module.policy), "logged": module.logged, "written": written, "sizes": sizes}


def sharded_parts(module: FineTuningModule) -> Found:
    models = [module.policy, module.reference] if isinstance(module, DPOModule) else [module.policy]
    return {
        "sharded": all(isinstance(parameter, DTensor) for model in models for parameter in model.parameters()),
        "units": [type(part).__name__ for part in module.policy.modules() if isinstance(part, FSDPModule)],
        "tied": module.policy.model.lm_head.weight is module.policy.model.model.embed_tokens.weight,  # type: ignore
        "modes": [part.training for model in models[1:] for part in model.modules()],
        "trained": [parameter.requires_grad for model in models[1:] for parameter in model.parameters()],
    }


def metrics_of(rank: int) -> Found:
    """Uneven ranks: 5 and 2 values of 1.0; flags 1, 0 and 1, 1; one metric on each rank alone; some on none."""
    collection = preference_metrics("x/")
    collection["loss"].update(torch.ones(5 if rank == 0 else 2), torch.ones(5 if rank == 0 else 2))
    for flag in ((1.0, 0.0), (1.0, 1.0))[rank]:
        collection["rewards/accuracies"].update(torch.tensor([flag]), torch.tensor([0.5]))
    logps = torch.full((3, 2), 1.0 + rank)
    collection["logps/chosen" if rank == 0 else "logps/rejected"].update(Pairs(logps, logps, logps, logps))
    return {name: value.item() for name, value in values(collection).items()}


# ---- tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def ranks(tiny_model: Path, folder: Path) -> list[Found]:
    """What the two processes found."""
    run_two_ranks(__file__, folder, str(tiny_model), str(folder))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def single(tiny_model: Path, folder: Path) -> Found:
    """The same fits in one process, with all 8 examples in one batch."""
    found: Found = {}
    for kind in KINDS:
        module = make(kind, str(tiny_model))
        run(module, "auto", None, folder / "one", gradient_clip_val=CLIP)
        found[kind] = summary(module)
        module = make(kind, str(tiny_model), adam=True)
        run(module, "auto", None, folder / f"one-{kind}-adam", logger=True, **three_of_four())
        found[f"{kind}-adam"] = summary(module)
    module = make("dpo", str(tiny_model), adapter=LoRA(r=4))
    run(module, "auto", None, folder / "one")
    found["lora"] = summary(module)
    found["4 bits"] = quantized_run(str(tiny_model), "auto", None, folder / "one-quantized")
    module = make("dpo", str(tiny_model), adam=True)
    run(module, "auto", None, folder / "one", max_epochs=4)
    found["resumed"] = summary(module)
    found["precomputed"] = precomputed_run(str(tiny_model), folder / "one-precomputed", devices=1)
    module = make("sft", str(tiny_model))
    run(module, "auto", None, folder / "one", gradient_clip_val=1e-4, gradient_clip_algorithm="value")
    found["value"] = summary(module)
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_keep_the_ledger_of_one(
    kind: str, strategy: str, ranks: list[Found], single: Found, folder: Path
) -> None:
    """Each of 8 rows in 3 epochs, and of 5 validation rows after each: the same steps, losses and margins to 1e-5."""
    mine, whole = (read_ledger(folder / name / LEDGER) for name in (f"{kind}-{strategy}-adam", f"one-{kind}-adam"))
    assert mine.num_rows == 3 * (8 + 5)
    assert mine.select(["split", "epoch", "step", "row"]).equals(whole.select(["split", "epoch", "step", "row"]))
    for column in ("loss", "weight", *(["margin"] if kind == "dpo" else [])):
        assert mine[column].to_pylist() == pytest.approx(whole[column].to_pylist(), abs=1e-5), column


# case: metrics-02, dpo-loss-05, perf-01, fsdp-01
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_make_the_clipped_steps_of_one(
    kind: str, strategy: str, ranks: list[Found], single: Found
) -> None:
    """Windows of 1 + 2 examples on rank 0 and 3 + 2 on rank 1, against 8 at once; SGD, 2 steps, clipped at a norm of
    0.01: weights to 1e-6, and the norm before clipping on both ranks. fsdp2: layers, tied embeddings and head, the
    chunked head and the frozen reference are shards; what is exported is gathered on rank 0."""
    for rank, found in enumerate(ranks):
        if strategy == "ddp" or rank == 0:
            assert_same(found[f"{kind}-{strategy}"]["weights"], single[kind]["weights"])
        assert found[f"{kind}-{strategy}"]["norm"] == pytest.approx(single[kind]["norm"], rel=1e-4)
        assert found[f"{kind}-{strategy}"]["norm"] > CLIP


# promise: devices
# case: metrics-02, dpo-loss-05
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_make_the_adamw_steps_of_one(kind: str, strategy: str, ranks: list[Found], single: Found) -> None:
    """AdamW with weight decay, 3 steps, unclipped: to 2e-6."""
    assert_same(ranks[0][f"{kind}-{strategy}-adam"]["weights"], single[f"{kind}-adam"]["weights"], 2e-6)


# promise: adapters
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_make_the_steps_of_an_adapter(
    strategy: str, folder: Path, ranks: list[Found], single: Found
) -> None:
    """DPO with LoRA, whose reference is the policy without it: to 1e-6; the checkpoint holds the trained weights."""
    assert_same(ranks[0][f"lora-{strategy}"]["weights"], single["lora"]["weights"])
    saved = torch.load(folder / f"lora-{strategy}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert saved and all("lora_" in name for name in saved)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install 'smollit[qlora]'")
def test_two_processes_make_the_steps_of_an_adapter_on_weights_in_4_bits(ranks: list[Found], single: Found) -> None:
    """DPO with LoRA by ddp, the reference in 4 bits too: to 1e-6, on both ranks."""
    assert single["4 bits"] and any(tensor.any() for name, tensor in single["4 bits"].items() if "lora_B" in name)
    for found in ranks:
        assert_same(found["4 bits"], single["4 bits"])


# promise: reduced-once
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_reduced_once_per_step(strategy: str, ranks: list[Found]) -> None:
    """2 steps of 2 micro-batches: none in the first of each window. ddp sends its gradients in one bucket; fsdp2 those
    of its 2 layers and the root."""
    in_last = {"ddp": 1, "fsdp2": 3}[strategy]
    for found in ranks:
        assert found[f"reductions-{strategy}"] == [0, in_last, 0, in_last]


# case: precision-04
def test_both_ranks_skip_the_steps_whose_scaled_gradients_overflow(ranks: list[Found]) -> None:
    """fp16 with a scale of 2^30, halved at each overflow: some of 12 steps are lost on both ranks, then they train."""
    first, second = (found["scaled"] for found in ranks)
    assert_same(first["weights"], second["weights"], 0)
    assert first["scale"] == second["scale"] == 2.0 ** (30 - first["overflowed"])
    assert 1 <= first["overflowed"] < 12 and first["logged"]["train/loss"] < first["losses"][0] * 0.99


def test_clipping_by_value_works_on_shards(ranks: list[Found], single: Found) -> None:
    """fsdp2, every number of the gradient within 1e-4."""
    assert_same(ranks[0]["value"]["weights"], single["value"]["weights"])


# case: metrics-02, metrics-06
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_ranks_log_the_metrics_of_one_process(kind: str, strategy: str, ranks: list[Found], single: Found) -> None:
    """Training means over all tokens or pairs of 2 steps, and their total number of tokens; validation on 5 rows, of
    which rank 1 has 2 and an empty batch: every metric to 1e-5 relative."""
    expected, *others = (
        {name: value for name, value in logged.items() if not any(part in name for part in TIMES)}
        for logged in (single[kind]["logged"], *(found[f"{kind}-{strategy}"]["logged"] for found in ranks))
    )
    assert {"val/loss", "throughput/seen_tokens", "throughput/trained_tokens"} <= expected.keys()
    for logged in others:
        assert logged == pytest.approx(expected, rel=1e-5, abs=1e-6)


# case: dpo-loss-14
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_loss_is_log_two_on_both_ranks(strategy: str, ranks: list[Found]) -> None:
    """1 pair on rank 0 and 3 on rank 1: sums ln 2 and 3 ln 2."""
    for found, num_pairs in zip(ranks, (1, 3), strict=True):
        assert found[f"dpo-{strategy}"]["losses"][0] / num_pairs == pytest.approx(math.log(2), abs=1e-6)


# case: fsdp-02, dpo-loss-14
@pytest.mark.parametrize("kind", KINDS)
def test_fsdp2_shards_layers_and_keeps_the_tie_in_the_root(kind: str, ranks: list[Found]) -> None:
    """2 layers and the root; head and embedding are one parameter; the reference is sharded, frozen, in eval mode."""
    for found in ranks:
        parts = found[f"{kind}-fsdp2-sharded"]
        assert parts["units"] == ["FSDPCausalLM", "FSDPLlamaDecoderLayer", "FSDPLlamaDecoderLayer"]
        assert parts["sharded"]
        assert parts["tied"]
        assert not any(parts["modes"] + parts["trained"])


# case: checkpoint-02
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_are_whole_and_safe_to_read(kind: str, strategy: str, folder: Path, ranks: list[Found]) -> None:
    """One file, read with weights_only=True: 21 whole tensors of the policy, those that the run ended with."""
    path = folder / f"{kind}-{strategy}-adam" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    weights = {name.removeprefix("policy.model."): tensor for name, tensor in state.items()}
    assert len(weights) == 21
    assert_same(weights, ranks[0][f"{kind}-{strategy}-adam"]["weights"], 0)


# promise: shards
def test_fsdp2_resumes_from_its_checkpoint(ranks: list[Found], single: Found) -> None:
    """DPO, 3 of 4 epochs of a step, resumed for the fourth: the weights of 4 epochs in one process, so AdamW's state
    was restored; the log at step 4 has the means over steps 3 and 4, so the pending metrics of both ranks were too."""
    assert [len(found["resumed"]["losses"]) for found in ranks] == [2, 2]  # the fourth epoch's two micro-batches
    assert_same(ranks[0]["resumed"]["weights"], single["resumed"]["weights"], 3e-6)
    for name in ("train/loss", "train/rewards/margins", "train/logps/chosen"):
        for found in ranks:
            assert found["resumed"]["logged"][name] == pytest.approx(single["resumed"]["logged"][name], rel=1e-5), name


# case: dpo-loss-03
def test_two_processes_divide_the_scoring_of_the_reference(ranks: list[Found], single: Found) -> None:
    """Files of 2 pairs of train and val: each is written by one rank, and both ranks write; then the steps and metrics
    of one process."""
    alone = single["precomputed"]
    parts = [f"{size} {start}" for size in alone["sizes"] for start in range(0, size, 2)]
    assert len(parts) > 4
    assert sorted(alone["written"]) == sorted(parts)
    assert sorted(ranks[0]["precomputed"]["written"] + ranks[1]["precomputed"]["written"]) == sorted(parts)
    assert min(len(found["precomputed"]["written"]) for found in ranks) >= 2
    for found in ranks:
        assert_same(found["precomputed"]["weights"], alone["weights"])
        for name, value in alone["logged"].items():
            assert found["precomputed"]["logged"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


# case: metrics-07, metrics-08, metrics-10, metrics-13
def test_metrics_are_sums_over_uneven_ranks(ranks: list[Found]) -> None:
    """1.0 with weights 5 and 2 is 1.0; flags 1, 0, 1, 1 are 0.75; what only one rank counted is logged on both; what
    none counted on neither."""
    expected = {"x/loss": 1.0, "x/rewards/accuracies": 0.75, "x/logps/chosen": 1.0, "x/logps/rejected": 2.0}
    assert ranks[0]["metrics"] == ranks[1]["metrics"] == expected


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
