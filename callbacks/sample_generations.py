"""SampleGenerations: responses to fixed prompts during training."""

import json
import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from smollit.batch import PADDING, Batch
from smollit.data.batching.collate import collate_prompts, unpacked
from smollit.data.template.template import ChatTemplate
from smollit.data.tokenized import TokenizedDataModule
from smollit.models.generation import Finish, finish_of
from smollit.models.sharding import is_sharded, unwrap
from smollit.modules import DPOModule, FineTuningModule
from smollit.paths import write_whole
from smollit.training.logs.progress import says
from smollit.training.logs.texts import log_texts
from smollit.training.predictions import num_positions, response_text
from smollit.training.steps import at_step_end

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One line of samples.jsonl.

    Args:
        step: Number of optimizer steps so far.
        prompt: The user's turn.
        policy: Response of the policy.
        reference: Response of the frozen reference, if there is one in memory.
        finish: Where the policy's response ends; `last_position` and `prompt_too_long` are the model's limits.
    """

    step: int
    prompt: str
    policy: str
    reference: str | None
    finish: Finish


class Response(NamedTuple):
    """The text of a response, and where it ends."""

    text: str
    finish: Finish


class SampleGenerations(Callback):
    """Writes responses of the policy, and of its reference if there is one, to samples.jsonl and to the
    loggers that take texts.

    Responses are generated before the first step, after every validation, and at the end of training. The run's random
    state and the modes of the model stay as they are: a run has the same weights with and without this callback.

    Args:
        prompts: The user's turn of each sample.
        every_n_steps: Number of optimizer steps between generations; null generates after every validation.
        max_new_tokens: Maximum number of tokens of a response.
        temperature: Sampling temperature; 0 decodes greedily.
        seed: Random seed of the sampling.
    """

    def __init__(
        self,
        prompts: list[str],
        *,
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
        self.last_step: int | None = None  # which have samples
        self.has_warned = False
        self.has_named_limits = False
        self.reference_responses: list[Response] | None = None  # generated once, because they never change

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reference_responses = None
        if trainer.is_global_zero:
            self.last_step = forget_later_steps(self.path(trainer), trainer.global_step)
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
        """The file with all samples of the run."""
        return Path(trainer.default_root_dir) / "samples.jsonl"

    def sample(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate and write the samples of this step, once, on rank 0."""
        if self.last_step == trainer.global_step:
            return
        self.last_step = trainer.global_step
        assert isinstance(pl_module, FineTuningModule), (
            "SampleGenerations generates with the policy of a smollit module"
        )
        if is_sharded(pl_module.policy):
            if not self.has_warned and trainer.is_global_zero:
                log.warning("SampleGenerations: a sharded model can't generate, so this run has no samples")
            self.has_warned = True
        elif trainer.is_global_zero:
            with says(trainer, "drawing samples"):
                self.write(trainer, self.generate(trainer, pl_module))

    def generate(self, trainer: Trainer, module: FineTuningModule) -> list[Sample]:
        """One sample for each prompt."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TokenizedDataModule):
            raise ValueError(
                f"SampleGenerations needs a smollit data module for its template, got {type(data).__name__}"
            )
        policy = self.responses(trainer, module.policy, data.template)
        # A precomputed reference is not in memory, and so has no responses.
        if isinstance(module, DPOModule) and module.scorer.has_model and self.reference_responses is None:
            self.reference_responses = self.responses(trainer, module.reference, data.template)
        known = self.reference_responses or []
        reference: list[str | None] = [*(each.text for each in known)] or [None] * len(self.prompts)
        self.name_limits(policy)
        rows = zip(self.prompts, policy, reference, strict=True)
        return [Sample(trainer.global_step, prompt, mine.text, other, mine.finish) for prompt, mine, other in rows]

    def name_limits(self, responses: list[Response]) -> None:
        """Name, once, the prompts that leave no position for a response."""
        too_long = [index for index, response in enumerate(responses) if response.finish == "prompt_too_long"]
        if too_long and not self.has_named_limits:
            log.warning("SampleGenerations: these `prompts` are longer than the model's positions: %s", too_long)
        self.has_named_limits = True

    def responses(self, trainer: Trainer, model: nn.Module, template: ChatTemplate) -> list[Response]:
        """The response of a model to each prompt."""
        causal_lm = unwrap(model)
        device = next(causal_lm.parameters()).device
        batch = move_data_to_device(prompts_batch(self.prompts, template), device)
        with evaluating(causal_lm), trainer.precision_plugin.forward_context():
            ids = causal_lm.generate(batch, self.max_new_tokens, template.stop_ids(), self.temperature, seed=self.seed)
        lengths = (batch.document != PADDING).sum(dim=1).tolist()
        limits = {"max_new_tokens": self.max_new_tokens, "positions": num_positions(model)}
        finishes = [finish_of(prompt, len(new), **limits) for prompt, new in zip(lengths, ids, strict=True)]
        return [Response(response_text(template, new), finish) for new, finish in zip(ids, finishes, strict=True)]

    def write(self, trainer: Trainer, samples: list[Sample]) -> None:
        """Append the samples to the file, and send them to the loggers."""
        path = self.path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(sample._asdict(), ensure_ascii=False) + "\n" for sample in samples)
        log_texts(trainer.loggers, "samples", [as_markdown(sample) for sample in samples], trainer.global_step)


def prompts_batch(prompts: list[str], template: ChatTemplate) -> Batch:
    """Each prompt as the user's turn of a chat, up to where the response starts."""
    texts = [template.prompt_text([{"role": "user", "content": prompt}]) for prompt in prompts]
    examples = [{"prompt_ids": ids, "row": row} for row, ids in enumerate(template.encode(texts))]
    return collate_prompts(unpacked(examples))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, since gradient checkpointing in train mode disables the cache; restores the modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def forget_later_steps(path: Path, step: int) -> int | None:
    """Remove the samples of steps that a resumed run repeats, at step 0 all of them; return the last step left."""
    if not path.is_file():
        return None
    # A killed run may leave an incomplete line after the last newline.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    kept = [line for line in lines if step and json.loads(line)["step"] <= step]
    write_whole(path, "".join(f"{line}\n" for line in kept))
    return int(json.loads(kept[-1])["step"]) if kept else None


def as_markdown(sample: Sample) -> str:
    """The text for TensorBoard. Indented lines are code blocks, so that a response is shown unchanged."""
    limited = {"finish": sample.finish} if sample.finish in ("last_position", "prompt_too_long") else {}
    texts = {"prompt": sample.prompt, "policy": sample.policy, "reference": sample.reference, **limited}
    parts = [(name, text) for name, text in texts.items() if text is not None]
    return "\n\n".join(f"**{name}**\n\n" + "\n".join(map("    {}".format, wrapped(text))) for name, text in parts)


def wrapped(text: str, width: int = 110) -> list[str]:
    """The lines of a text, with long ones wrapped between words; no word or empty line is lost."""
    wrap = partial(textwrap.wrap, width=width, break_long_words=False, replace_whitespace=False)
    return [part for line in text.split("\n") for part in wrap(line) or [""]]
