"""Two CPU processes and what is around them: a run that goes on with other devices, a save that fails, FSDP by hand.

This file is also the program that the two processes run, once, for all tests below.
"""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import enable_wrap
from torch.profiler import ProfilerActivity, profile

from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.main import main
from smollit.models import CausalLM
from smollit.models.checkpoint import policy_weights
from smollit.models.sharding import shard, unsynchronized
from smollit.modules import DPOModule, SFTModule
from smollit.training import SmollitTrainer
from smollit.training.checkpoints.files import best_record
from smollit.training.checkpoints.saving import NotSavedError
from smollit.training.ledger import FILE as LEDGER
from smollit.training.ledger import read_ledger
from smollit.training.logs.table import read_table
from smollit.training.options import Sharded2Strategy
from tests.conftest import SAMPLES, batch_of, example_chats, run_two_ranks

pytestmark = pytest.mark.slow
Found = dict[str, Any]


class Runs:
    """Starts of runs on 12 chats or 24 rows of pairs: 6 steps of 4 rows, on any devices, validated at every second."""

    def __init__(self, model: str, folder: Path, devices: int) -> None:
        self.model, self.folder, self.devices = model, folder, devices

    def start(self, name: str, strategy: Any, max_steps: int = 6, *callbacks: Callback, **data: Any) -> None:
        """Begin a run of SFT or DPO, by its name, or go on with it."""
        is_sft = name.startswith("sft")
        module, kind = (SFTModule, UltraChatDataModule) if is_sft else (DPOModule, UltraFeedbackDataModule)
        samples, name_of_split, count = ("ultrachat", "sft", 12) if is_sft else ("ultrafeedback", "prefs", 24)
        sizes = {"train_batch_size": 2, "global_batch_size": 4, "max_length": 96, "max_dropped_share": 1.0}
        splits = {"train_split": f"train_{name_of_split}[:{count}]", "val_split": f"test_{name_of_split}[:3]"}
        trainer = SmollitTrainer(
            self.folder / name,
            callbacks=[*callbacks],
            accelerator="cpu",
            devices=self.devices,
            strategy=strategy,
            max_epochs=2,
            max_steps=max_steps,
            log_every_n_steps=1,
            val_every_n_steps=2,
            checkpoint_every_n_steps=1,
            keep_best="val/loss",
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        rows = kind(
            str(SAMPLES / samples),
            tokenizer_name=self.model,
            cache_dir=str(self.folder / "cache"),
            **splits | sizes | data,
        )
        model = module(self.model, learning_rate=1e-3, schedule="constant")
        trainer.fit(model, datamodule=rows, ckpt_path="last")


# ---- what each of the two processes does


def work(rank: int, model: str, folder: Path) -> None:
    runs = Runs(model, folder, devices=2)
    runs.start("dpo", "ddp", 2)
    runs.start("dpo", "fsdp2", 4)
    runs.start("sft", "ddp", 4)
    runs.start("sft-larger", "ddp", 7, global_batch_size=None)
    runs.start("sft-shards", Sharded2Strategy(save_distributed_checkpoint=True), 2)
    main(["fit", *words(model, folder, "--trainer.devices=2", "--trainer.strategy=ddp")])
    found: Found = {"fsdp": fsdp(model, rank), "averages": averages(model, folder)}
    for name in ("ddp", "fsdp2"):
        with pytest.MonkeyPatch.context() as patch:
            disk_is_full = lambda patch=patch: patch.setattr(torch, "save", full_disk)  # noqa: E731
            found[f"full-{name}"] = error_of(runs, f"sft-full-{name}", name, disk_is_full)
    ledger = folder / "sft-ledger" / LEDGER
    found["ledger"] = error_of(runs, "sft-ledger", "fsdp2", lambda: (ledger.unlink(), ledger.mkdir()))
    torch.save(found, folder / f"rank{rank}.pt")


def words(model: str, folder: Path, *more: str) -> list[str]:
    """4 steps of 2 micro-batches of 3 rows per device, of 40 rows; their order depends on the rows of a micro-batch."""
    settings = ["--model=SFTModule", f"--model.model_name={model}", "--model.learning_rate=1e-3"]
    settings += ["--data=UltraChatDataModule", f"--data.dataset={SAMPLES / 'ultrachat'}", "--data.val_split=null"]
    settings += ["--data.train_split=train_sft[:40]", "--data.train_batch_size=3", "--data.group_by_length=true"]
    settings += ["--data.max_length=96", "--data.max_dropped_share=1", f"--data.cache_dir={folder / 'cache'}"]
    settings += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.accumulate_grad_batches=2"]
    settings += ["--trainer.log_every_n_steps=1", "--trainer.checkpoint_every_n_steps=2"]
    return [*settings, f"--trainer.default_root_dir={folder / 'cli'}", "--trainer.enable_progress_bar=false", *more]


def averages(model: str, folder: Path) -> list[str]:
    """How a run whose config has EMAWeightAveraging ends with ddp, which copies the module, and with fsdp2."""
    found = []
    for strategy in ("ddp", "fsdp2"):
        more = ["--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.max_steps=2"]
        more += [f"--trainer.default_root_dir={folder / f'ema-{strategy}'}", "--trainer.callbacks=EMAWeightAveraging"]
        try:
            found.append(f"step {main(['fit', *words(model, folder, *more)]).trainer.global_step}")
        except SystemExit as error:
            found.append(str(error))
    return found


SAVE = torch.save


def full_disk(value: Any, file: Any, **options: Any) -> None:
    if isinstance(value, dict):
        raise OSError(errno.ENOSPC, "No space left on device")
    SAVE(value, file, **options)  # a process group pickles tensors with it


class AfterTwoSteps(Callback):
    """Does something on the first rank."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 2 and trainer.is_global_zero:
            self.act()


def error_of(runs: Runs, name: str, strategy: str, fault: Callable[[], object]) -> str:
    """With which a run ends after a fault of the first rank."""
    try:
        runs.start(name, strategy, 6, AfterTwoSteps(fault))
    except NotSavedError as error:
        return str(error)
    return "none"


def fsdp(model: str, rank: int) -> Found:
    """The two micro-batches of a window under FSDP, whose strategy Lightning offers on GPUs alone: reductions in each,
    and the largest difference of the gradients from those of one process, which has all 4 chats."""
    chats, parent = example_chats(4), nn.Module()
    with enable_wrap(wrapper_cls=FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True):
        parent.policy = shard(CausalLM(model), None)
    counts = []
    for micro in range(2):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            loss = parent.policy(batch_of([chats[2 * micro + rank]])).sums.sum()
            if micro == 0:
                with unsynchronized(parent):
                    loss.backward()
            else:
                loss.backward()
        counts.append(sum(event.name == "c10d::_reduce_scatter_base_" for event in seen.events() or []))
    alone = CausalLM(model)
    (alone(batch_of(chats)).sums.sum() / 2).backward()  # FSDP divides by the number of ranks
    expected = {name: parameter.grad for name, parameter in alone.named_parameters()}
    with FullyShardedDataParallel.summon_full_params(parent.policy, with_grads=True):
        found = {name: parameter.grad for name, parameter in parent.policy.named_parameters()}
        apart = [float((found[name] - value).abs().max()) for name, value in expected.items()]
    return {"reductions": counts, "apart": max(apart), "names": found.keys() == expected.keys()}


# ---- tests


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs: SFT on 1, 2 and 1 devices; DPO with ddp, fsdp2 and on 1 device; and whole ones in this process."""
    folder = tmp_path_factory.mktemp("ranks")
    one = Runs(str(tiny_model), folder, devices=1)
    one.start("sft", "auto", 2)
    one.start("sft-larger", "auto", 2, global_batch_size=None)
    run_two_ranks(__file__, folder, str(tiny_model), str(folder))
    for name in ("sft", "dpo"):
        one.start(name, "auto")
        one.start(f"{name}-whole", "auto")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Found]:
    """What the two processes found."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


# promise: other-devices
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_goes_on_with_other_devices_and_another_strategy(kind: str, folder: Path) -> None:
    """2 of 6 steps, 2 more elsewhere, and 2 more on one device: the rows of the run on one device, its training losses
    to 1e-6; losses of rows, validations, the best one and the weights to 1e-5."""
    mine, whole = (read_ledger(folder / name / LEDGER) for name in (kind, f"{kind}-whole"))
    rows = ["split", "epoch", "step", "row", "hash"]
    assert max(mine["step"].to_pylist()) == 6 and mine.select(rows).equals(whole.select(rows))
    assert mine["loss"].to_pylist() == pytest.approx(whole["loss"].to_pylist(), rel=1e-5, abs=1e-5)
    curves = [read_table(folder / name / "metrics.csv") for name in (kind, f"{kind}-whole")]
    for name, digits in {"train/loss": 1e-6, "train/learning_rate": 1e-6, "val/loss": 1e-5}.items():
        found, expected = ({row["step"]: float(row[name]) for row in curve if row[name]} for curve in curves)
        assert found == pytest.approx(expected, rel=digits), name
    bests = [best_record(folder / name / "checkpoints/best.ckpt")["value"] for name in (kind, f"{kind}-whole")]
    assert bests[0] == pytest.approx(bests[1], rel=1e-5)
    found, expected = (policy_weights(folder / name / "checkpoints/last.ckpt") for name in (kind, f"{kind}-whole"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_larger_step_repeats_no_row_and_leaves_none_out(folder: Path) -> None:
    """2 steps of 2 rows on one device, then steps of 4 on two: each of 12 rows once in each of 2 epochs."""
    train = read_ledger(folder / "sft-larger" / LEDGER)
    train = train.filter(pc.equal(train["split"], "train"))
    seen = sorted(zip(train["epoch"].to_pylist(), train["row"].to_pylist(), strict=True))
    assert seen == [(epoch, row) for epoch in range(2) for row in range(12)]
    assert max(train["step"].to_pylist()) == 2 + 2 + 3


def test_shards_of_two_ranks_are_resumed_by_one(tiny_model: Path, folder: Path) -> None:
    """With fsdp2; without it, a folder of shards is refused in a sentence."""
    one = Runs(str(tiny_model), folder, devices=1)
    with pytest.raises(ValueError, match="is a folder of shards"):
        one.start("sft-shards", "auto")
    one.start("sft-shards", Sharded2Strategy(save_distributed_checkpoint=True))
    found, expected = (policy_weights(folder / name / "checkpoints/last.ckpt") for name in ("sft-shards", "sft-whole"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# promise: rank-faults
@pytest.mark.parametrize("name", ["full-ddp", "full-fsdp2", "ledger"])
def test_all_ranks_end_with_the_sentence_of_a_failed_save(name: str, ranks: list[Found]) -> None:
    """The first rank alone can't write the checkpoint of step 3, or the ledger before it."""
    assert ranks[0][name] == ranks[1][name]
    assert ("Is a directory" if name == "ledger" else "No space left on device") in ranks[0][name]
    assert name == "ledger" or (".ckpt of step 2" in ranks[0][name] and "is whole" in ranks[0][name])


@pytest.mark.parametrize("step", [2, 4])
def test_a_step_of_two_ranks_is_replayed_by_one_process(
    step: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the beginning, and from the checkpoint of step 2: the rows of both ranks, 12 in a step, fewer in the last;
    their weighted mean is the loss that was logged, and all metrics agree to 1e-4."""
    capsys.readouterr()
    main(["replay", str(folder / "cli"), str(step), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    ledger = read_ledger(folder / "cli" / LEDGER)
    seen = ledger.filter(pc.equal(ledger["step"], step))["row"].to_pylist()
    assert sorted(row["row"] for row in found["rows"]) == seen and (len(seen) == 12) == (step == 2)
    assert found["differing"] == []
    (logged,) = [row for row in read_table(folder / "cli" / "metrics.csv") if row["step"] == str(step)]
    weights, losses = zip(*((row["loss_tokens"], row["loss"]) for row in found["rows"]), strict=True)
    mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert mean == pytest.approx(float(logged["train/loss"]), rel=1e-4)
    with pytest.raises(SystemExit, match="2 devices made this step, and with `data"):
        main(["replay", str(folder / "cli"), str(step), "--data.max_batch_tokens=200"])


def test_fsdp_reduces_gradients_once_per_step(ranks: list[Found]) -> None:
    """Of 2 layers and the root, in the second of 2 micro-batches; the gradients are those of one process."""
    for found in ranks:
        assert found["fsdp"]["reductions"] == [0, 3]
        assert found["fsdp"]["names"] and found["fsdp"]["apart"] < 1e-5


def test_averages_of_a_config_run_with_ddp_and_are_refused_where_weights_are_sharded(ranks: list[Found]) -> None:
    """The module's optimizer holds the command line, with the trainer and its processes, which can't be copied."""
    for found in ranks:
        assert found["averages"][0] == "step 2"
        assert "copies the whole model, which this strategy shards" in found["averages"][1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
