"""SampleGenerations: what the model answers to fixed prompts, while it learns."""

import json
import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from smollit.batch import Batch
from smollit.data.batching.collate import collate_prompts, unpacked
from smollit.data.template.template import ChatTemplate
from smollit.models.sharding import is_sharded, unwrap
from smollit.modules import DPOModule
from smollit.training.position import at_step_end
from smollit.training.predictions import answer_text, to_line
from smollit.training.random_state import get_random_state, set_random_state

log = logging.getLogger(__name__)


class SampleGenerations(Callback):
    """Answers of the policy, beside its reference's where there is one, in TensorBoard (Text) and samples.jsonl.

    They are drawn before the first step, after every validation, and at the end of training. The run's random state
    and the model's modes are left as they were.

    Args:
        prompts: What the user says in each sample.
        every_n_steps: Draw samples every so many optimizer steps, instead of after every validation.
        max_new_tokens: Longest answer in tokens.
        temperature: 0 takes the likeliest token each time; above 0 draws at this temperature.
        seed: Of the drawing.
    """

    def __init__(
        self,
        prompts: list[str],
        every_n_steps: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not prompts:
            raise ValueError("`prompts` of SampleGenerations is empty: give at least one, or leave the callback out")
        if (every_n_steps is not None and every_n_steps < 1) or max_new_tokens < 1:
            raise ValueError(
                "`every_n_steps` and `max_new_tokens` of SampleGenerations must be at least 1,"
                f" got {every_n_steps} and {max_new_tokens}"
            )
        if temperature < 0:
            raise ValueError(f"`temperature` of SampleGenerations must be at least 0, got {temperature}")
        self.prompts = prompts
        self.every_n_steps = every_n_steps
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.seed = seed
        self.last_step: int | None = None
        self.has_warned = False
        self.reference_answers: list[str] | None = None  # they never change

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reference_answers = None
        if trainer.is_global_zero:
            forget_later_steps(self.path(trainer), trainer.global_step)
        # A resumed run goes on behind samples that it has drawn before.
        self.last_step = trainer.global_step or None
        if not trainer.global_step:
            self.sample(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_steps is None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.sample(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.every_n_steps and at_step_end(trainer) and trainer.global_step % self.every_n_steps == 0:
            self.sample(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sample(trainer, pl_module)

    def path(self, trainer: Trainer) -> Path:
        """The file that keeps all samples."""
        return Path(trainer.default_root_dir) / "samples.jsonl"

    def sample(self, trainer: Trainer, module: Any) -> None:
        """Draw and write the samples of this step, once, on rank 0."""
        if self.last_step == trainer.global_step:
            return
        self.last_step = trainer.global_step
        if is_sharded(module.policy):
            if not self.has_warned and trainer.is_global_zero:
                log.warning("SampleGenerations: a sharded model can't generate, so this run has no samples")
            self.has_warned = True
        elif trainer.is_global_zero:
            self.write(trainer, self.draw(trainer, module))

    def draw(self, trainer: Trainer, module: Any) -> list[dict[str, Any]]:
        """One object per prompt: step, prompt, and the answers of policy and reference."""
        template = trainer.datamodule.template  # type: ignore[attr-defined]
        policy = self.answers(trainer, module.policy, template)
        # A reference that was scored beforehand is not in memory, and so gives no answers.
        if isinstance(module, DPOModule) and module.scorer.has_model and self.reference_answers is None:
            self.reference_answers = self.answers(trainer, module.reference, template)
        reference: Sequence[str | None] = self.reference_answers or [None] * len(self.prompts)
        return [
            {"step": trainer.global_step, "prompt": prompt, "policy": answer, "reference": other}
            for prompt, answer, other in zip(self.prompts, policy, reference, strict=True)
        ]

    def answers(self, trainer: Trainer, model: nn.Module, template: ChatTemplate) -> list[str]:
        """What a model answers to each prompt."""
        causal_lm = unwrap(model)
        device = next(causal_lm.parameters()).device
        batch = move_data_to_device(prompts_batch(self.prompts, template), device)
        with unchanged(causal_lm), trainer.precision_plugin.forward_context():
            torch.manual_seed(self.seed)
            ids = causal_lm.generate(batch, self.max_new_tokens, template.stop_ids(), self.temperature)
        return [answer_text(template, answer) for answer in ids]

    def write(self, trainer: Trainer, samples: list[dict[str, Any]]) -> None:
        """To the file, and to every TensorBoard."""
        path = self.path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(map(to_line, samples))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for number, sample in enumerate(samples):
                    logger.experiment.add_text(f"samples/{number}", as_markdown(sample), trainer.global_step)


def prompts_batch(prompts: list[str], template: ChatTemplate) -> Batch:
    """Each prompt as the only turn of a chat, up to where the answer starts."""
    texts = [template.prompt_text([{"role": "user", "content": prompt}]) for prompt in prompts]
    return collate_prompts(
        unpacked([{"prompt_ids": ids, "row": row} for row, ids in enumerate(template.encode(texts))])
    )


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The model in eval mode (in train mode, gradient checkpointing turns the cache off); after it, all as before."""
    modes = [(module, module.training) for module in model.modules()]
    random_state = get_random_state()
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        set_random_state(random_state)


def forget_later_steps(path: Path, step: int) -> None:
    """Drop what an earlier run wrote about steps that are now done again; at step 0, all of it."""
    if not path.is_file():
        return
    # Behind the last newline there may be half a line, of a run that was killed.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    kept = [line for line in lines if step and json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def as_markdown(sample: dict[str, Any]) -> str:
    """What TensorBoard shows; indented text stands as it is, whatever the answer holds, in lines that fit a screen."""
    parts = [(name, sample[name]) for name in ("prompt", "policy", "reference") if sample[name] is not None]
    return "\n\n".join(f"**{name}**\n\n" + "\n".join(map("    {}".format, folded(text))) for name, text in parts)


def folded(text: str, width: int = 110) -> list[str]:
    """The lines of a text, long ones broken between words; no word or blank line is lost."""
    fold = partial(textwrap.wrap, width=width, break_long_words=False, replace_whitespace=False)
    return [part for line in text.split("\n") for part in fold(line) or [""]]
