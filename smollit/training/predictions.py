"""WritePredictions: the responses of `predict`, in the order of the rows, in <run folder>/predictions.jsonl."""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from smollit.batch import PADDING, Batch
from smollit.data.template.template import ChatTemplate
from smollit.models.sharding import is_sharded
from smollit.modules import FineTuningModule

log = logging.getLogger(__name__)
FILE = "predictions.jsonl"


class WritePredictions(Callback):
    """Writes one JSON object per row: `row`, `prompt`, `answer`.

    Every rank writes a separate part, batch by batch, so a killed run leaves its finished responses; at the end rank 0
    merges the parts.
    """

    def __init__(self) -> None:
        self.part: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if type(pl_module).predict_step is not FineTuningModule.predict_step:
            return  # the output of another `predict_step` is not written
        policy = pl_module.policy
        assert isinstance(policy, nn.Module)
        if is_sharded(policy):
            raise ValueError("a sharded model can't generate: `predict` needs `trainer.strategy` auto or ddp")
        path = part_path(trainer, trainer.global_rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.part = path.open("w", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any, **kwargs: Any
    ) -> None:
        if self.part is None:
            return
        template = trainer.datamodule.template  # type: ignore[attr-defined]
        prompts = zip(batch.input_ids, batch.document, strict=True)
        # The empty batch that keeps ranks in step has one row of padding and no outputs.
        for (row, ids), (prompt_ids, document) in zip(outputs or [], prompts, strict=bool(outputs)):
            prompt = template.tokenizer.decode(prompt_ids[document != PADDING], clean_up_tokenization_spaces=False)
            entry = {"row": row, "prompt": prompt, "answer": response_text(template, ids)}
            self.part.write(to_line(entry))
        self.part.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.part is None:
            return
        self.close()
        trainer.strategy.barrier("all predictions are written")
        if trainer.is_global_zero:
            parts = [part_path(trainer, rank) for rank in range(trainer.world_size)]
            target = Path(trainer.default_root_dir) / FILE
            log.info("%s responses in %s", f"{merge(parts, target):,}", target)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Close this rank's part, if it is open."""
        if self.part is not None:
            self.part.close()
        self.part = None


def response_text(template: ChatTemplate, ids: Iterable[int]) -> str:
    """The text of a response, without special tokens and without what follows the end of the turn."""
    text = str(template.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    end = template.turn_end()
    # An end marker of several tokens does not stop generation, so its text is searched for.
    return text.partition(end)[0] if end else text


def to_line(entry: dict[str, Any]) -> str:
    """One line of a JSON Lines file."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def part_path(trainer: Trainer, rank: int) -> Path:
    """The file that a rank writes until the end."""
    return Path(trainer.default_root_dir) / f".{FILE}.rank-{rank}"


def merge(parts: list[Path], target: Path) -> int:
    """Merge the parts, sorted by row, remove them, and return the number of rows."""
    lines = [line for part in parts for line in part.read_text(encoding="utf-8").split("\n") if line]
    lines.sort(key=lambda line: json.loads(line)["row"])
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, target)
    for part in parts:
        part.unlink()
    return len(lines)
