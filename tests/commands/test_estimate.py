"""`estimate`: memory by part against sums by hand, the epoch's counts, and what is said of them."""

import contextlib
import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console

from smollit.batch import Batch
from smollit.commands.estimate.epoch import heaviest, positions
from smollit.commands.estimate.estimate import make_estimate, most_positions, spread
from smollit.commands.estimate.memory import LiveMemory, peak_parts
from smollit.commands.estimate.view import gib, hours, show
from smollit.data import UltraChatDataModule
from smollit.data.batching.collate import collate_chats, collate_pairs
from smollit.main import main
from smollit.modules import DPOModule, SFTModule

SAMPLES = Path(__file__).parents[2] / "smollit" / "data" / "samples"
CPU = torch.device("cpu")


def chats(rows: int, length: int) -> Batch:
    """`length` positions in each row, all trained."""
    ids = list(range(3, 4 + length))
    return collate_chats([[{"input_ids": ids, "spans": [1, length + 1], "row": row}] for row in range(rows)])


def pairs(num: int) -> Batch:
    ids = list(range(3, 43))
    return collate_pairs(
        [[{"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids, "row": row}] for row in range(num)]
    )


def loaded(module: Any) -> Any:
    module.configure_model()
    return module


def parts(module: Any, first: list[Batch], later: list[Batch] | None = None, accumulates: bool = False) -> Any:
    return peak_parts(module, first, first if later is None else later, accumulates, CPU, contextlib.nullcontext)


def data(tiny_model: Path, cache_dir: Path, **options: Any) -> UltraChatDataModule:
    common = {"train_split": "train_sft[:10]", "val_split": None, "max_length": 64, "train_batch_size": 2}
    common |= {"tokenizer_name": str(tiny_model), "cache_dir": str(cache_dir), "seed": 1}
    return UltraChatDataModule(str(SAMPLES / "ultrachat"), **{**common, **options})


def trainer(tmp_path: Path, **options: Any) -> Trainer:
    common = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return Trainer(default_root_dir=str(tmp_path), **{**common, **options})


# ---- memory


def test_weights_gradients_and_adam(tiny_model: Path) -> None:
    """fp32 is 4 bytes per weight, as many per gradient, and Adam keeps two values and a count per tensor.

    With accumulation, a later micro-batch finds all of them. Its activations, of one position, are small."""
    module = loaded(SFTModule(str(tiny_model)))
    weights = 4 * sum(parameter.numel() for parameter in module.policy.parameters())
    buffers = sum(buffer.nbytes for buffer in module.policy.buffers())
    found = parts(module, [chats(1, 1)], accumulates=True)
    assert found["weights"] == weights + buffers
    assert found["gradients"] == weights
    tensors = len(list(module.policy.parameters()))
    largest = max(parameter.nbytes for parameter in module.policy.parameters())
    # At the peak, temporaries as large as the largest weight are there too.
    assert 2 * weights + 4 * tensors <= found["optimizer"] <= 2 * weights + 4 * tensors + 4 * largest
    assert found["reference"] == 0


@pytest.mark.parametrize(
    ("optimizer", "copies"), [(torch.optim.SGD, 0), (torch.optim.Adagrad, 1), (torch.optim.AdamW, 2)]
)
def test_any_optimizer(tiny_model: Path, optimizer: Any, copies: int) -> None:
    """A later step's forward pass finds the state that was made: 0, 1 or 2 values per weight."""
    module = loaded(SFTModule(str(tiny_model), optimizer=lambda params: optimizer(params, lr=2e-5)))
    weights = 4 * sum(parameter.numel() for parameter in module.policy.parameters())
    found = parts(module, [chats(8, 128)])
    assert copies * weights <= found["optimizer"] <= copies * weights + 1000


def test_activations_are_what_autograd_keeps(tiny_model: Path) -> None:
    """Another way: the storages that a real forward pass saves for its backward pass, without the weights."""
    module = loaded(SFTModule(str(tiny_model)))
    batch, kept = chats(8, 128), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.step(batch, "train")
    own = {tensor.untyped_storage().data_ptr() for tensor in module.policy.parameters()}
    saved = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    found = parts(module, [batch], [])
    assert saved <= found["activations"] <= 1.25 * saved


def test_activations_grow_with_positions(tiny_model: Path) -> None:
    """Twice the rows: twice the activations. The head stays: it has as many tokens in its chunk."""
    module = loaded(SFTModule(str(tiny_model), chunk_size=64))
    four, eight = parts(module, [chats(4, 128)]), parts(module, [chats(8, 128)])
    assert eight["activations"] == pytest.approx(2 * four["activations"], rel=0.05)
    assert eight["head chunk"] == four["head chunk"]


def test_head_chunk_is_logits(tiny_model: Path) -> None:
    """At the peak there are some copies, at least two, of [chunk, words] in fp32; half a chunk needs half."""
    words = loaded(SFTModule(str(tiny_model))).policy.config.vocab_size
    heads = {}
    for size in (128, 256):
        module = loaded(SFTModule(str(tiny_model), chunk_size=size))
        heads[size] = parts(module, [chats(8, 128)])["head chunk"]
        assert heads[size] >= 2 * size * words * 4
    assert heads[256] - heads[128] >= 2 * 128 * words * 4


def test_checkpointing_keeps_less(tiny_model: Path) -> None:
    """true < selective < false."""
    kept = [
        parts(loaded(SFTModule(str(tiny_model), gradient_checkpointing=how)), [chats(8, 128)])["activations"]
        for how in (True, "selective", False)
    ]
    assert kept == sorted(kept) and kept[0] < kept[1] < kept[2]


def test_first_step_has_no_optimizer_state(tiny_model: Path) -> None:
    """A heavy first micro-batch alone peaks without state; the same batch later finds it."""
    module = loaded(SFTModule(str(tiny_model)))
    heavy = [chats(8, 128)]
    assert parts(module, heavy, [])["optimizer"] == 0
    assert parts(module, heavy)["optimizer"] > 0


def test_accumulated_gradients_are_beside_the_activations(tiny_model: Path) -> None:
    """With accumulation, the second micro-batch's head finds all gradients of the first one: 4 bytes per weight."""
    module = loaded(SFTModule(str(tiny_model)))
    weights = 4 * sum(parameter.numel() for parameter in module.policy.parameters())
    batch = chats(8, 128)
    alone, second = parts(module, [batch], []), parts(module, [batch, batch], [], True)
    assert alone["gradients"] < weights
    assert second["gradients"] == weights


def test_reference_is_a_second_model(tiny_model: Path) -> None:
    """Frozen: all weights once more. Without a model in memory: 0."""
    module = loaded(DPOModule(str(tiny_model)))
    found = parts(module, [pairs(4)])
    assert found["reference"] == sum(parameter.nbytes for parameter in module.reference.parameters())
    precomputed = DPOModule(str(tiny_model), reference="precomputed")
    SFTModule.configure_model(precomputed)  # type: ignore[arg-type]
    batch = pairs(4)._replace(reference_logps=torch.zeros(8))
    assert parts(precomputed, [batch])["reference"] == 0


def test_the_module_is_as_before(tiny_model: Path) -> None:
    """Weights, gradients and metrics of the real module are untouched."""
    module = loaded(SFTModule(str(tiny_model)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parts(module, [chats(2, 16)])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert float(module.metrics_of("train")["loss"].count) == 0


def test_live_memory_counts_storages_once() -> None:
    """100 floats are 400 bytes, a view is none, a second tensor that goes again leaves its mark on the peak only."""
    with LiveMemory(CPU, vocabulary=7) as live:
        one = torch.zeros(100)
        view = one[:50]
        two = torch.zeros(25)
        assert live.total == 500
        del two
        assert live.total == 400 and live.peak_total == 500 and view.numel() == 50
        live.assign([one], "weights")
        torch.zeros(3, 7)
    assert live.live["weights"] == 400
    assert live.peak_total == 500


@pytest.mark.skipif(sys.platform != "linux", reason="holes of glibc's heap")
def test_only_passes_with_gradients_leave_holes(tiny_model: Path) -> None:
    """The reference's pass adds none, and twice the rows make twice as many."""
    plain = parts(loaded(DPOModule(str(tiny_model))), [pairs(4)], [])["allocator"]
    precomputed = DPOModule(str(tiny_model), reference="precomputed")
    SFTModule.configure_model(precomputed)  # type: ignore[arg-type]
    batches = {num: pairs(num)._replace(reference_logps=torch.zeros(2 * num)) for num in (4, 8)}
    four, eight = (parts(precomputed, [batch], [])["allocator"] for batch in batches.values())
    assert plain == pytest.approx(four, rel=0.02)
    assert eight == pytest.approx(2 * four, rel=0.1)


# ---- the epoch


def test_positions_with_and_without_padding() -> None:
    """Rows of 5 + 2 = 7 and 3: 10 positions, or 2 x 7 = 14 with padding."""
    assert positions([5, 2, 3], [[0, 1], [2]], "documents") == 10
    assert positions([5, 2, 3], [[0, 1], [2]], "sdpa") == 14


def test_heaviest_batches() -> None:
    """Sizes 9, 3, 4 | 8, 1, 2 | 7: steps of three. The first step: its first batch, and the heaviest that follows."""
    lengths = [9, 3, 4, 8, 1, 2, 7]
    batches = [[[example]] for example in range(7)]
    assert heaviest(lengths, batches, "documents", 3, 3) == ([[[0]], [[2]]], [[[3]]])
    assert heaviest(lengths, batches, "documents", 3, 1) == ([[[0]], [[2]]], [])
    assert heaviest(lengths, batches, "documents", 1, 2) == ([[[0]]], [[[1]]])


def test_counts_of_an_epoch(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """10 chats in batches of 2 are 5 micro-batches; 2 accumulated: 3 steps; 2 epochs: 6; max_steps 4 is less."""
    module = SFTModule(str(tiny_model))
    found = make_estimate(
        trainer(tmp_path, max_epochs=2, max_steps=4, accumulate_grad_batches=2),
        module,
        data(tiny_model, cache_dir),
        False,
    )
    epoch = found.epoch
    assert (epoch.examples, epoch.rows, epoch.batches, epoch.steps, epoch.run_steps) == (10, 10, 5, 3, 4)
    rows = data(tiny_model, cache_dir)
    rows.prepare_data()
    rows.setup("fit")
    examples = [rows.examples["train"][index] for index in range(10)]
    assert epoch.tokens == sum(len(example["input_ids"]) - 1 for example in examples)
    spans = [example["spans"] for example in examples]
    assert epoch.trained == sum(sum(span[1::2]) - sum(span[::2]) for span in spans)
    assert epoch.padding_share == 0 and epoch.packed_share is None
    assert found.parameters == found.trainable == sum(p.numel() for p in module.policy.parameters())
    assert found.seconds_per_step is None and found.fits


def test_time_is_steps_times_seconds(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """5 steps: hours are 5 x seconds / 3600."""
    found = make_estimate(trainer(tmp_path), SFTModule(str(tiny_model)), data(tiny_model, cache_dir), True)
    assert found.seconds_per_step and found.seconds_per_step > 0
    assert found.hours == pytest.approx(5 * found.seconds_per_step / 3600)


def test_streaming_is_refused(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the lengths of all rows"):
        make_estimate(trainer(tmp_path), SFTModule(str(tiny_model)), data(tiny_model, cache_dir, streaming=True), False)


# ---- what fits


def test_most_positions() -> None:
    """100 of weights, 40 for 20 positions; 170 are free: 30 more than needed, 15 positions more."""
    memory = {"weights": 100, "activations": 40, "allocator": 0, "process": 999}
    assert most_positions(memory, 20, 170) == 35
    assert most_positions(memory, 20, 120) == 10
    assert most_positions(memory, 20, 50) == 0


def test_shares_of_several_devices(tmp_path: Path) -> None:
    """Two devices of DDP: buckets as large as the gradients. One device: as it is."""
    memory = {"weights": 10, "reference": 0, "gradients": 10, "optimizer": 20, "activations": 5}
    assert spread(memory, trainer(tmp_path)) == memory
    assert spread(memory, trainer(tmp_path, devices=2))["gradients"] == 20


# ---- the command


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_command(
    kind: str, tiny_model: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table and the JSON file say the same; precomputed pairs are not scored for it."""
    module, name, split = {
        "sft": ("SFTModule", "UltraChat", "train_sft"),
        "dpo": ("DPOModule", "UltraFeedback", "train_prefs"),
    }[kind]
    words = ["estimate", f"--model=smollit.modules.{module}", f"--model.model_name={tiny_model}"]
    words += [f"--data=smollit.data.{name}DataModule", f"--data.dataset={SAMPLES / name.lower()}", "--data.packing=on"]
    words += [f"--data.train_split={split}[:8]", "--data.val_split=null", "--data.max_length=128"]
    words += [f"--data.cache_dir={cache_dir}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=3", f"--json={tmp_path / 'out.json'}"]
    words += ["--data.max_dropped_share=1", "--ckpt_path=last", "--time_probe=false"]
    scored = set(Path(cache_dir).glob("reference-*"))  # by other tests: the cache is theirs too
    main(words + (["--model.reference=precomputed"] if kind == "dpo" else []))
    shown, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert found["peak"] == sum(found["memory"].values())
    assert gib(found["peak"]) in shown and "fits: " in shown and "packed" in shown
    assert f"{found['epoch']['run_steps']:,} in the run" in shown and found["epoch"]["run_steps"] == 3
    assert set(Path(cache_dir).glob("reference-*")) == scored


def test_words_for_numbers() -> None:
    assert gib(3 * 1024**3 // 2) == "1.50 GiB" and gib(5 * 1024**2) == "5.0 MiB"
    assert hours(2.25) == "2.2 hours" and hours(0.5) == "30.0 minutes"


def test_no_fit_is_said_with_what_to_change(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """One byte less than needed."""
    found = make_estimate(trainer(tmp_path), SFTModule(str(tiny_model)), data(tiny_model, cache_dir), False)
    needed = found.peak - found.memory["process"]
    console = Console(file=StringIO(), width=200)
    show(console, replace(found, free=needed - 1, fits=False))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"DOES NOT FIT: {gib(needed)} are needed" in shown
    assert "1. model.gradient_checkpointing: false -> true" in shown
