"""smollit through its public classes, with the settings that a user would take for the device."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.autograd import DeviceType
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from compare.floor import attention_share, model_size
from compare.record import Plan, Recorder, Task
from compare.rows import make_data
from smollit.batch import Batch
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import ReferenceScores, SmollitTrainer
from smollit.training.scores.reference import reference_scores_are_needed
from smollit.training.steps import at_step_end

Settings = dict[str, dict[str, Any]]
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "flex_attention")


# ---- EDIT HERE: what a user would set, beyond what the comparison fixes (see `run`)


def smollit_settings(task: Task, device: str) -> Settings:
    """init_args of the model, the data module and the trainer: DPO with a frozen reference, as TRL's defaults.

    Leave the number of examples in a step as it is, and their order: `group_by_length` and `longest_first` would move
    rows between the warm-up and the measured steps.
    """
    # On a CPU more at once is not faster: a pair has positions enough, and four short chats have about as many.
    at_once = {"train_batch_size": 1} if device == "cpu" and task == "dpo" else {}
    return {"model": {"optimizer": fused_adamw}, "data": at_once, "trainer": {}}


def smollit_settings_tuned(task: Task, device: str) -> Settings:
    """And with all that smollit offers to be fast: a precomputed reference, as in TRL at its fastest."""
    settings = smollit_settings(task, device)
    return settings | {"model": settings["model"] | ({"reference": "precomputed"} if task == "dpo" else {})}


# ---- end of what to edit


def fused_adamw(params: Any) -> AdamW:
    """One kernel for all weights: TRL's default too."""
    return AdamW(params, weight_decay=0.0, fused=True)


class RecordSteps(Callback):
    """Reports every step to the recorder: its end, its loss, its rows."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.tokens = torch.tensor([size.tokens for size in recorder.plan.sizes])
        self.batches: list[tuple[Tensor, int, Batch]] = []  # (loss sum, its count, rows) of the open step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.tokens = self.tokens.to(pl_module.device)
        self.recorder.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """After the optimizer step; the log that follows counts into the next step."""
        assert isinstance(pl_module, FineTuningModule)
        count = batch.num_loss_tokens if self.recorder.plan.task == "sft" else batch.num_examples
        # Lightning has divided the loss by the number of micro-batches.
        loss_sum = outputs["loss"] * pl_module.nominal_count * trainer.accumulate_grad_batches
        self.batches.append((loss_sum, count, batch))
        if not at_step_end(trainer):
            return
        sums, counts, rows = zip(*self.batches, strict=True)
        tokens = sum(self.tokens[part.example_ids].sum() for part in rows)
        self.recorder.add_batch(sum(sums) / sum(counts), tokens, sum(part.num_examples for part in rows))
        self.recorder.end_step()
        self.batches.clear()


class ProfileLastStep(Callback):
    """Profiles the last step alone."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        devices = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if plan.device == "cuda" else [])
        self.profiler = profile(activities=devices)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Begin before the last step."""
        if batch_idx == (self.plan.num_steps - 1) * trainer.accumulate_grad_batches:
            self.profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """End after it."""
        if batch_idx == self.plan.num_steps * trainer.accumulate_grad_batches - 1:
            self.profiler.stop()

    def shares(self) -> dict[str, float]:
        """Of the device's time: in matrix products, in attention kernels, in all else; see `shares`."""
        # A GPU's kernels stand there twice: as themselves, and in the time of the operation that launched them.
        events = [event for event in self.profiler.key_averages() if event.device_type == DeviceType.CPU]
        own = "self_device_time_total" if self.plan.device == "cuda" else "self_cpu_time_total"
        inside = attention_share(model_size(self.plan.model), self.plan.sizes[-self.plan.examples_per_step :])
        return shares({event.key: getattr(event, own) for event in events}, inside)


def shares(own_times: dict[str, float], inside: float) -> dict[str, float]:
    """Times by operation -> fractions of matrix products, attention kernels, and all else.

    A profiler does not see the products inside an attention kernel. `products_in_attention` is what the least of them,
    `inside` times all other products, take at the speed of the others; `attention` counts them too.
    """
    total = sum(own_times.values())
    products = sum(time for name, time in own_times.items() if name in PRODUCTS)
    attention = sum(time for name, time in own_times.items() if any(part in name for part in ATTENTION))
    return {
        "matrix_products": products / total,
        "attention": attention / total,
        "other": 1 - (products + attention) / total,
        "products_in_attention": min(inside * products, attention) / total,
    }


def run(plan: Plan, tuned: bool, profiled: bool) -> dict[str, Any]:
    """Train, and return the measurements; `profiled` adds the fractions of the last step."""
    settings = (smollit_settings_tuned if tuned else smollit_settings)(plan.task, plan.device)
    recorder, folder = Recorder(plan), Path(plan.rows).parent
    seed_everything(plan.seed, verbose=False)
    cache = folder / ("cache-tuned" if tuned else "cache")
    options = {"train_batch_size": plan.examples_per_step} | settings["data"]
    data = make_data(plan.task, Path(plan.rows), plan.model, plan.max_length, cache, **options)
    profiler = ProfileLastStep(plan) if profiled else None
    callbacks = [TimeReferenceScores(recorder), RecordSteps(recorder), *([profiler] if profiler else [])]
    accumulated = plan.examples_per_step // options["train_batch_size"]
    trainer = make_trainer(plan, folder, callbacks, {"accumulate_grad_batches": accumulated} | settings["trainer"])
    module = make_module(plan, settings["model"])
    precomputed = reference_scores_are_needed(module)
    trainer.fit(module, datamodule=data)
    result = recorder.result(speakable(settings), plan.task == "dpo" and not precomputed)
    return result | ({"profile": profiler.shares()} if profiler else {})


class TimeReferenceScores(ReferenceScores):
    """Notes how long it takes to score all rows by the reference before training."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Score them, and add the time."""
        start = time.perf_counter()
        super().setup(trainer, pl_module, stage)
        if reference_scores_are_needed(pl_module):
            self.recorder.precompute_seconds += time.perf_counter() - start


def speakable(settings: Settings) -> Settings:
    """Settings as JSON can hold them: a function by its name."""
    return {
        part: {name: value.__name__ if callable(value) else value for name, value in options.items()}
        for part, options in settings.items()
    }


def make_module(plan: Plan, options: dict[str, Any]) -> FineTuningModule:
    """SFTModule or DPOModule, with TRL's constant learning rate and no dropout."""
    fixed: dict[str, Any] = {
        "learning_rate": plan.learning_rate,
        "schedule": "constant",
        "gradient_checkpointing": plan.gradient_checkpointing,
    }
    kind = SFTModule if plan.task == "sft" else DPOModule
    return kind(model_name=plan.model, **fixed | options)


def make_trainer(plan: Plan, folder: Path, callbacks: list[Callback], options: dict[str, Any]) -> SmollitTrainer:
    """The trainer, with TRL's clipping and interval of logs."""
    fixed: dict[str, Any] = {
        "accelerator": "cpu" if plan.device == "cpu" else "gpu",
        "devices": 1,
        "precision": plan.precision,
        "max_steps": plan.num_steps,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 10,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    return SmollitTrainer(default_root_dir=str(folder / "smollit"), callbacks=callbacks, **fixed | options)
