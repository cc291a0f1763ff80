"""WritePredictions: the responses of `predict`, in the order of the rows, in <run folder>/predictions.jsonl."""

import json
import logging
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from smollit.batch import PADDING, Batch
from smollit.data.template.template import ChatTemplate
from smollit.data.tokenized import TokenizedDataModule
from smollit.models.generation import finish_of, positions_of
from smollit.models.sharding import is_sharded, unwrap
from smollit.modules import FineTuningModule
from smollit.paths import json_lines, reading, write_whole
from smollit.training.steps import data_module

log = logging.getLogger(__name__)
FILE = "predictions.jsonl"
Entry = dict[str, Any]


class WritePredictions(Callback):
    """Writes one JSON object per row: `row`, `prompt`, `answer`, and `finish`, which says where the response ended.

    Every rank writes a separate part, batch by batch; at the end rank 0 merges the parts. The first line of a part says
    what it was made from, so a killed `predict` continues after its last complete row, if nothing has changed since.
    """

    def __init__(self) -> None:
        self.part: TextIO | None = None
        self.written: dict[int, Entry] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if type(pl_module).predict_step is not FineTuningModule.predict_step:
            return  # the output of another `predict_step` is not written
        policy = pl_module.policy
        assert isinstance(policy, nn.Module)
        if is_sharded(policy):
            raise ValueError("a sharded model can't generate: `predict` needs `trainer.strategy` auto or ddp")
        assert isinstance(pl_module, FineTuningModule)
        head = origin(trainer, pl_module)
        self.written = read_parts(part_path(trainer, "*"), head)
        if self.written and trainer.is_global_zero:
            log.info("%s responses are there already: only the others are generated", f"{len(self.written):,}")
        pl_module.skipped_rows = frozenset(self.written)
        trainer.strategy.barrier("all parts are read")
        # Rank 0 takes over all rows that are there, before the other ranks begin their parts anew.
        if trainer.is_global_zero:
            write_part(part_path(trainer, 0), head, self.written.values())
        trainer.strategy.barrier("rank 0 holds them")
        path = part_path(trainer, trainer.global_rank)
        if trainer.is_global_zero:
            for other in set(path.parent.glob(part_path(trainer, "*").name)) - {path}:
                other.unlink()
        trainer.strategy.barrier("the other parts are gone")
        if not trainer.is_global_zero:
            write_part(path, head, [])
        self.part = path.open("a", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any, **kwargs: Any
    ) -> None:
        if self.part is None:
            return
        assert isinstance(pl_module, FineTuningModule)
        template = trainer.datamodule.template  # type: ignore[attr-defined]
        limits = {"max_new_tokens": pl_module.max_new_tokens, "positions": num_positions(pl_module.policy)}
        prompts = zip(batch.input_ids, batch.document, strict=True)
        # The empty batch that keeps ranks in step has one row of padding and no outputs; nor have batches of old rows.
        for (row, ids), (prompt_ids, document) in zip(outputs or [], prompts, strict=bool(outputs)):
            if row in self.written:
                continue
            prompt_ids = prompt_ids[document != PADDING]
            prompt = template.tokenizer.decode(prompt_ids, clean_up_tokenization_spaces=False)
            finish = finish_of(len(prompt_ids), len(ids), **limits)
            entry = {"row": row, "prompt": prompt, "answer": response_text(template, ids), "finish": finish}
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
            entries = merge(parts, target)
            log.info("%s responses in %s", f"{len(entries):,}", target)
            report_limits(entries)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Close this rank's part, if it is open."""
        if self.part is not None:
            self.part.close()
        self.part = None


def origin(trainer: Trainer, module: FineTuningModule) -> Entry:
    """What responses are made from: weights, settings and rows."""
    path = Path(trainer.ckpt_path) if trainer.ckpt_path else None
    data = data_module(trainer)
    return {
        "model": [module.model_name, module.init_from],
        "checkpoint": [str(path), path.stat().st_mtime_ns] if path else None,
        "max_new_tokens": module.max_new_tokens,
        "temperature": module.temperature,
        "rows": data.examples["predict"].keys if isinstance(data, TokenizedDataModule) else None,
    }


def num_positions(policy: nn.Module) -> int:
    """Number of positions of a model, which prompt and response share."""
    return positions_of(unwrap(policy).config)


def response_text(template: ChatTemplate, ids: Iterable[int]) -> str:
    """The text of a response, without special tokens and without what follows the end of the turn."""
    text = str(template.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    end = template.turn_end()
    # An end marker of several tokens does not stop generation, so its text is searched for.
    return text.partition(end)[0] if end else text


def report_limits(entries: list[Entry]) -> None:
    """Warn of responses that the model's last position ended, and of prompts that do not fit."""
    for finish, what in (
        ("last_position", "responses end at the model's last position"),
        ("prompt_too_long", "prompts leave no position for a response, which is empty"),
    ):
        rows = [entry["row"] for entry in entries if entry.get("finish") == finish]
        if rows:
            shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            log.warning("%s %s (`finish` is %s): rows %s", f"{len(rows):,}", what, finish, shown)


# ---- files


def to_line(entry: Entry) -> str:
    """One line of a JSON Lines file."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def part_path(trainer: Trainer, rank: int | str) -> Path:
    """The file that a rank writes until the end."""
    return Path(trainer.default_root_dir) / f".{FILE}.rank-{rank}"


def write_part(path: Path, head: Entry, entries: Iterable[Entry]) -> None:
    """Begin a part: what it is made from, and the rows that are there already."""
    write_whole(path, "".join(map(to_line, [head, *entries])))


def read_part(path: Path) -> list[Entry]:
    """The complete lines of a part: a killed run may leave an incomplete one after the last newline."""
    with reading(path):
        return list(json_lines(path.read_text(encoding="utf-8").rpartition("\n")[0]))


def read_parts(pattern: Path, head: Entry) -> dict[int, Entry]:
    """The rows of all parts that were made from the same, by row number."""
    parts = [read_part(path) for path in sorted(pattern.parent.glob(pattern.name))]
    return {entry["row"]: entry for first, *entries in filter(None, parts) if first == head for entry in entries}


def merge(parts: list[Path], target: Path) -> list[Entry]:
    """Merge the parts, sorted by row, remove them, and return the rows."""
    entries = sorted((entry for part in parts for entry in read_part(part)[1:]), key=itemgetter("row"))
    write_whole(target, "".join(map(to_line, entries)))
    for part in parts:
        part.unlink()
    return entries
