"""`estimate`: parts of memory against sums by hand, the counts of an epoch, and the table."""

import json
import re
from collections.abc import Callable
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
from smollit.commands.estimate.estimate import Estimate, estimate, most_positions
from smollit.commands.estimate.memory import fixed_parts, head_bytes, saved_bytes, spread
from smollit.commands.estimate.view import gib, hours, show
from smollit.data.batching.collate import collate_chats
from smollit.main import main
from smollit.models.adapters import LoRA
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from tests.conftest import edited

SAMPLES = Path(__file__).parents[2] / "smollit" / "data" / "samples"


def chats(rows: int, length: int) -> Batch:
    """`length` positions in each row, all with a loss."""
    ids = list(range(3, 4 + length))
    return collate_chats([[{"input_ids": ids, "spans": [1, length + 1], "row": row}] for row in range(rows)])


def loaded(module: FineTuningModule) -> FineTuningModule:
    module.configure_model()
    module.policy.train()
    return module


def weight_bytes(module: FineTuningModule) -> int:
    """fp32: 4 bytes each."""
    return 4 * sum(weight.numel() for weight in module.policy.parameters())


def saved(module: FineTuningModule, batch: Batch) -> int:
    return saved_bytes(Trainer(accelerator="cpu", logger=False), module, batch)


def estimated(run: Any, **options: Any) -> Estimate:
    return estimate(run.trainer, run.module, run.data, **options)


# ---- memory


@pytest.mark.parametrize(
    ("optimizer", "copies"), [(torch.optim.SGD, 0), (torch.optim.Adagrad, 1), (torch.optim.AdamW, 2)]
)
def test_weights_gradients_and_any_optimizer(tiny_model: Path, optimizer: Any, copies: int) -> None:
    """As many bytes of gradients as of weights; 0, 1 or 2 values per weight of state, and a count per tensor."""
    module = loaded(SFTModule(str(tiny_model), optimizer=lambda params: optimizer(params, lr=2e-5)))
    weights, tensors = weight_bytes(module), len(list(module.policy.parameters()))
    found = fixed_parts(module)
    assert found["weights"] == weights + sum(buffer.nbytes for buffer in module.policy.buffers())
    assert (found["gradients"], found["reference"]) == (weights, 0)
    assert found["optimizer"] == copies * weights + 4 * tensors * bool(copies)


def test_the_reference_is_a_second_model(tiny_model: Path) -> None:
    """Frozen: all weights and buffers once more."""
    found = fixed_parts(loaded(DPOModule(str(tiny_model))))
    assert found["reference"] == found["weights"]


# promise: estimate
def test_saved_bytes_are_what_autograd_keeps(tiny_model: Path) -> None:
    """Another way: keep every saved tensor of a real forward pass, and sum their storages without the weights'."""
    module, batch, kept = loaded(SFTModule(str(tiny_model))), chats(8, 128), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module.step(batch, "train")[0]
    weights = {tensor.untyped_storage().data_ptr() for tensor in module.policy.parameters()}
    expected = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    assert loss.requires_grad and saved(module, batch) == expected


def test_saved_bytes_grow_with_positions_and_shrink_with_checkpointing(tiny_model: Path) -> None:
    """Twice the rows: twice the bytes, of which the gradient of the head, made in the forward pass, is constant."""
    module = loaded(SFTModule(str(tiny_model)))
    four, eight, sixteen = (saved(module, chats(rows, 128)) for rows in (4, 8, 16))
    assert sixteen - eight == pytest.approx(2 * (eight - four), rel=0.01)
    assert saved(loaded(SFTModule(str(tiny_model), gradient_checkpointing=True)), chats(8, 128)) < eight / 4


def test_head_chunk_is_logits_and_log_probabilities(tiny_model: Path) -> None:
    """1,024 tokens in chunks of 256, or 300 tokens in two of 150: 2 x 4 bytes for each of 2,048 words."""
    module = loaded(SFTModule(str(tiny_model), chunk_size=256))
    assert head_bytes(module, chats(8, 128)) == 256 * 2048 * 8
    assert head_bytes(module, chats(3, 100)) == 150 * 2048 * 8


def test_several_devices_hold_parts_or_buckets(tmp_path: Path) -> None:
    """Two devices of DDP: buckets as large as the gradients. One device: as it is."""
    fixed = {"weights": 10, "reference": 0, "gradients": 10, "optimizer": 20}
    options = {"accelerator": "cpu", "logger": False, "default_root_dir": str(tmp_path)}
    assert spread(fixed, Trainer(**options)) == fixed
    assert spread(fixed, Trainer(devices=2, **options)) == {**fixed, "gradients": 20}


def test_most_positions() -> None:
    """100 of weights, 40 for 20 positions; 170 are free: 30 more than needed, 15 positions more."""
    memory = {"weights": 100, "activations": 30, "allocator": 10, "process": 999}
    assert [most_positions(memory, 20, free) for free in (170, 120, 50)] == [35, 10, 0]


def test_the_parts_are_those_of_the_micro_batch_that_needs_the_most(make_run: Callable[..., Any]) -> None:
    """Rows of at most 256 tokens, the longest first: with LoRA that batch, which finds neither gradients nor optimizer
    state. Of at most 48 they hardly differ: with all weights, a later batch, which finds 4 + 8 bytes per weight."""
    for model, length, first in (({"adapter": LoRA()}, 256, True), ({}, 48, False)):
        run = make_run(model=model, data={"max_length": length}, max_epochs=1)
        found = estimated(run, time_probe=False)
        sizes = [positions(run.data.documents("train").lengths, rows, "documents") for rows in run.data.sampler()]
        assert found.heaviest == (2, sizes[0] if first else max(sizes[1:]))
        later = found.memory["gradients"], found.memory["optimizer"]
        assert later[0] == (0 if first else 4 * found.trainable) and (later[1] == 0) == first


# ---- the epoch


def test_positions_with_and_without_padding() -> None:
    """Rows of 5 + 2 = 7 and 3: 10 positions, or 2 x 7 = 14 with padding."""
    assert positions([5, 2, 3], [[0, 1], [2]], "documents") == 10
    assert positions([5, 2, 3], [[0, 1], [2]], "sdpa") == 14


def test_heaviest_micro_batches() -> None:
    """Sizes 9, 3, 4 | 8, 1, 2 | 7: steps of three. The first step: its first batch, and the heaviest that follows."""
    sizes = [9, 3, 4, 8, 1, 2, 7]
    assert heaviest(sizes, accumulate=3, run_steps=3) == [0, 2, 6, 3]
    assert heaviest(sizes, accumulate=3, run_steps=1) == [0, 2]
    assert heaviest(sizes, accumulate=1, run_steps=2) == [0, 1]


def test_counts_of_an_epoch(make_run: Callable[..., Any]) -> None:
    """10 chats in batches of 2 are 5 micro-batches; 2 accumulated: 3 steps; 2 epochs: 6; max_steps 4 is less."""
    options = {"train_split": "train_sft[:10]", "max_length": 64}
    run = make_run(data=options, max_epochs=2, max_steps=4, accumulate_grad_batches=2)
    found = estimated(run, time_probe=False)
    epoch = found.epoch
    assert (epoch.examples, epoch.rows, epoch.batches, epoch.steps, epoch.run_steps) == (10, 10, 5, 3, 4)
    examples = [run.data.examples["train"][index] for index in range(10)]
    assert epoch.tokens == sum(len(example["input_ids"]) - 1 for example in examples)
    spans = [example["spans"] for example in examples]
    assert epoch.loss_tokens == sum(sum(span[1::2]) - sum(span[::2]) for span in spans)
    assert epoch.padding_fraction == 0 and epoch.packed_fraction is None
    assert found.parameters == found.trainable == sum(weight.numel() for weight in run.module.policy.parameters())
    assert found.seconds_per_step is None and found.fits


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({}, 4000), ({"max_steps": 7}, 7), ({"max_time": "00:00:01:00"}, 4), ({"max_epochs": 0}, 0)],
)
def test_the_run_has_the_steps_that_fit_makes(
    make_run: Callable[..., Any], limits: dict[str, Any], expected: int
) -> None:
    """4 steps per epoch. Lightning trains for 1,000 epochs where nothing limits the run; of time, an epoch is shown."""
    assert estimated(make_run(**limits), time_probe=False).epoch.run_steps == expected


def test_streamed_rows_are_refused(make_run: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="needs the lengths of all rows"):
        estimated(make_run(data={"streaming": True}))


# ---- the probe


def test_time_is_steps_times_seconds(make_run: Callable[..., Any]) -> None:
    """8 chats in batches of 2: 4 steps; hours are 4 x seconds / 3600. The peak is that of the process, measured."""
    found = estimated(make_run(max_epochs=1))
    assert found.seconds_per_step and found.seconds_per_step > 0
    assert found.hours == pytest.approx(4 * found.seconds_per_step / 3600)
    assert found.memory["allocator"] >= 0


def test_a_run_without_room_is_not_tried(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One byte is free: there is no time, and the estimate advises what to change."""
    monkeypatch.setattr("smollit.commands.estimate.estimate.free_bytes", lambda device: 1)
    found = estimated(make_run())
    assert found.fits is False and found.hours is None and "no probe step runs" in caplog.text
    shown = table(found)
    assert f"DOES NOT FIT: at least {gib(found.peak - found.memory['process'])} are needed" in shown
    assert "1. model.gradient_checkpointing: false -> true" in shown


# ---- the command


def table(found: Estimate) -> str:
    """What a person reads."""
    console = Console(file=StringIO(), width=200)
    show(console, found)
    return console.file.getvalue()  # type: ignore[attr-defined]


# promise: estimate
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
    words += ["--data.max_dropped_share=1", "--ckpt_path=last"]
    scored = set(Path(cache_dir).glob("reference-*"))  # by other tests: the cache is theirs too
    main(words + (["--model.reference=precomputed"] if kind == "dpo" else []))
    shown, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert found["peak"] == sum(found["memory"].values())
    assert gib(found["peak"]) in shown and "fits: " in shown and "packed" in shown
    assert f"{found['epoch']['run_steps']:,} in the run" in shown and found["epoch"]["run_steps"] == 3
    assert re.search(r"per step +about", shown) and found["memory"]["reference"] == 0
    assert set(Path(cache_dir).glob("reference-*")) == scored


def test_numbers_as_text(make_run: Callable[..., Any]) -> None:
    """1.5 GiB, 5 MiB; 2.25 hours, half an hour; and a system that does not report free memory."""
    assert gib(3 * 1024**3 // 2) == "1.50 GiB" and gib(5 * 1024**2) == "5.0 MiB"
    assert hours(2.25) == "2.2 hours" and hours(0.5) == "30.0 minutes"
    found = estimated(make_run(), time_probe=False)
    assert "free memory is unknown" in table(replace(found, free=None, fits=None, most_positions=None))


# case: E6
def test_a_tokenizer_larger_than_the_model_gets_the_sentence_of_fit(
    make_run: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """2,048 tokens, 2,000 embeddings: `estimate` and `fit` refuse in the same words. `add_tokens` adds the other 48."""
    small = edited(tiny_model, tmp_path / "small", vocab_size=2000)
    model = {"model_name": str(small), "weights": "random"}
    errors = []
    for action in (lambda run: run.fit(), lambda run: estimated(run, time_probe=False)):
        with pytest.raises(ValueError, match=r"2,048 tokens, but the model has embeddings for 2,000") as raised:
            action(make_run([], model=model, max_steps=1))
        errors.append(str(raised.value))
    assert errors[0] == errors[1]
    before = estimated(make_run([], max_steps=1), time_probe=False).parameters
    assert (
        estimated(make_run([], model=model, data={"add_tokens": True}, max_steps=1), time_probe=False).parameters
        == before
    )
