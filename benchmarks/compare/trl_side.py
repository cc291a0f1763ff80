"""TRL: with its defaults, and at the fastest settings that its documentation offers for the device."""

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

from compare.chatml import TRL_CHATML
from compare.record import Plan, Recorder


def fixed_settings(plan: Plan) -> dict[str, Any]:
    """What the comparison fixes; all else is TRL's default."""
    return {
        "max_steps": plan.num_steps,
        "per_device_train_batch_size": plan.examples_per_step,
        "max_length": plan.max_length,
        "learning_rate": plan.learning_rate,
        "lr_scheduler_type": "constant",
        "seed": plan.seed,
        "bf16": plan.precision == "bf16-mixed",
        "use_cpu": plan.device == "cpu",
        "gradient_checkpointing": plan.gradient_checkpointing,
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    } | ({"assistant_only_loss": True} if plan.task == "sft" else {})


def tuned_settings(plan: Plan) -> dict[str, Any]:
    """The documented switches that are faster on this device and keep precision and effective batch.

    Rows of similar length share a step too: see `order`. `adamw_torch_fused` is the default already. Padding-free
    batches need flash-attn, and are not there for DPO. Hub kernels (`use_kernels`) need a download.
    """
    flash = plan.device == "cuda" and plan.precision == "bf16-mixed" and find_spec("flash_attn") is not None
    settings: dict[str, Any] = {"torch_compile": True} if plan.trl_compile else {}
    if plan.device == "cuda":
        settings |= {"dataloader_num_workers": 4, "dataloader_persistent_workers": True}
    if flash:
        settings["model_init_kwargs"] = {"attn_implementation": "flash_attention_2"}
    if flash and plan.task == "sft":
        settings["padding_free"] = True
    if plan.task == "dpo":
        settings["precompute_ref_log_probs"] = True
    return settings


def order(plan: Plan, tuned: bool) -> list[int]:
    """Row numbers in the order of the steps. Tuned: the measured rows by length, longest first.

    That is what `train_sampling_strategy: group_by_length` does within each 50 batches; its own sampler would move
    rows between the warm-up and the measured steps.
    """
    first = plan.warmup * plan.examples_per_step
    numbers = list(range(len(plan.sizes)))
    if not tuned:
        return numbers
    longest = {number: max(plan.sizes[number].responses) + plan.sizes[number].prompt for number in numbers}
    return numbers[:first] + sorted(numbers[first:], key=longest.__getitem__, reverse=True)


class EndOfStep(TrainerCallback):
    """Tells the recorder when training starts and when a step is over."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.recorder.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer step; the log that may follow counts into the next step."""
        self.recorder.end_step()


def run(plan: Plan, tuned: bool) -> dict[str, Any]:
    """Train, and return the measurements."""
    recorder = Recorder(plan)
    settings = fixed_settings(plan) | (tuned_settings(plan) if tuned else {})
    trainer = make_trainer(plan, settings, recorder, order(plan, tuned))
    trainer.remove_callback(PrinterCallback)
    record_batches(trainer, recorder)
    trainer.train()
    reference = plan.task == "dpo" and not settings.get("precompute_ref_log_probs", False)
    return recorder.result(settings, reference_in_step=reference)


def make_trainer(plan: Plan, settings: dict[str, Any], recorder: Recorder, numbers: list[int]) -> Any:
    """SFTTrainer or DPOTrainer on the rows, in the given order."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    lines = Path(plan.rows).read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(plan.model)
    tokenizer.chat_template = TRL_CHATML

    class TimedDPOTrainer(DPOTrainer):
        """Its constructor scores all rows with the reference, where that is asked for."""

        def _precompute_ref_logps(self, *args: Any) -> Any:
            start = time.perf_counter()
            dataset = super()._precompute_ref_logps(*args)
            recorder.precompute_seconds = time.perf_counter() - start
            return dataset

    config: Any
    trainer: Any
    config, trainer = (SFTConfig, SFTTrainer) if plan.task == "sft" else (DPOConfig, TimedDPOTrainer)
    return trainer(
        model=plan.model,
        args=config(output_dir=str(Path(plan.rows).parent / "trl"), **settings),
        train_dataset=Dataset.from_list([json.loads(lines[number]) for number in numbers]),
        processing_class=tokenizer,
        callbacks=[EndOfStep(recorder)],
    )


def record_batches(trainer: Any, recorder: Recorder) -> None:
    """Note each batch's loss, real tokens and examples, without a wait for the device."""
    step = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        tokens, rows = count(inputs)
        loss = step(model, inputs, num_items_in_batch)
        recorder.add_batch(loss, tokens, rows if recorder.plan.task == "sft" else rows // 2)
        return loss

    trainer.training_step = training_step


def count(inputs: dict[str, Any]) -> tuple[int | Tensor, int | Tensor]:
    """Real tokens and rows of a batch; one without padding has no mask, and positions that start again at 0."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum(), inputs["attention_mask"].shape[0]
    return inputs["input_ids"].numel(), (inputs["position_ids"] == 0).sum()
