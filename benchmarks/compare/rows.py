"""The rows of a comparison: the first that both tools tokenise alike, chosen before either of them starts."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from datasets import load_dataset
from transformers import AutoTokenizer

from compare.chatml import TRL_CHATML
from compare.record import RowSize, Task
from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.data.datamodule import ChatDataModule

Row = dict[str, list[dict[str, str]]]
COLUMNS: dict[Task, tuple[str, ...]] = {"sft": ("messages",), "dpo": ("chosen", "rejected")}
SPLITS: dict[Task, str] = {"sft": "train_sft", "dpo": "train_prefs"}
FOLDERS: dict[Task, str] = {"sft": "ultrachat_200k", "dpo": "ultrafeedback_binarized"}
SAMPLES: dict[Task, str] = {"sft": "ultrachat", "dpo": "ultrafeedback"}
READERS = {".parquet": "parquet", ".jsonl": "json"}
CANDIDATES = 20  # rows looked at, per row needed


class Selection(NamedTuple):
    """Rows for both tools, and of those looked at: how many smollit uses, and how many both tokenise alike."""

    rows: list[Row]
    sizes: list[RowSize]
    num_usable: int
    num_alike: int
    num_cut: int  # of the selected rows


def select_rows(
    task: Task, dataset: Path, split: str, model: str, num_rows: int, max_length: int, ws: Path
) -> Selection:
    """The first `num_rows` that both tools tokenise alike; `ws` is a folder for what is written on the way.

    Raises:
        ValueError: If there are fewer.
    """
    candidates = read_rows(task, dataset, split, CANDIDATES * num_rows, ws / "datasets")
    file = write_rows(candidates, ws / "candidates.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows: list[Row] = []
    sizes: list[RowSize] = []
    num_usable = num_alike = num_cut = 0
    data = make_data(task, file, model, max_length, ws / "candidates")
    data.prepare_data()
    data.setup("fit")
    examples = data.examples["train"]
    for example in (examples[index] for index in range(len(examples))):
        row = candidates[example["row"]]
        measure = measure_chat if task == "sft" else measure_pair
        size = measure(tokenizer, row, example, max_length)
        num_usable += 1
        num_alike += size is not None
        if size is not None and len(rows) < num_rows:
            rows.append(row)
            sizes.append(size)
            num_cut += bool(example["truncated"])
    if len(rows) < num_rows:
        raise ValueError(f"{len(rows)} of {len(candidates)} rows of {dataset} can be used, and {num_rows} are needed")
    return Selection(rows, sizes, num_usable, num_alike, num_cut)


def read_rows(task: Task, dataset: Path, split: str, limit: int, cache: Path) -> list[Row]:
    """The first rows of a split, with the columns and keys that count.

    Raises:
        ValueError: If the folder has no Parquet or JSON Lines file of this split.
    """
    files = sorted(path for path in dataset.rglob(f"{split}[-.]*") if path.suffix in READERS)
    if not files:
        raise ValueError(f"{dataset} holds no {split}*.parquet or {split}*.jsonl: `--data` must hold the folder")
    reader = READERS[files[0].suffix]
    found = load_dataset(reader, data_files=[str(file) for file in files], split="train", cache_dir=str(cache))
    found = found.select(range(min(len(found), limit)))
    return [{name: [plain(message) for message in row[name]] for name in COLUMNS[task]} for row in found]


def plain(message: dict[str, Any]) -> dict[str, str]:
    """Role and content, without the nulls that Arrow fills in."""
    return {"role": message["role"], "content": message["content"]}


def write_rows(rows: list[Row], path: Path) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_data(task: Task, file: Path, model: str, max_length: int, cache: Path, **options: Any) -> ChatDataModule:
    """smollit's data module on a file of rows, in the order of the file; a row of TRL's batch is a row of its own."""
    kind = UltraChatDataModule if task == "sft" else UltraFeedbackDataModule
    fixed: dict[str, Any] = {
        "train_split": "train",
        "val_split": None,
        "tokenizer_name": model,
        "chat_template": "chatml",
        "max_length": max_length,
        "shuffle": False,
        "longest_first": False,
        "packing": "off",
        "max_dropped_share": 1.0,
        "cache_dir": str(cache),
    }
    return kind(str(file), **fixed | options)


def measure_chat(tokenizer: Any, row: Row, example: dict[str, Any], limit: int) -> RowSize | None:
    """Size of a chat as TRL tokenises it; None if smollit has other tokens, or trains others."""
    theirs = render(tokenizer, row["messages"], return_assistant_tokens_mask=True)
    ids, mask = theirs["input_ids"][:limit], theirs["assistant_masks"][:limit]
    ours, spans = example["input_ids"], example["spans"]
    loss_tokens = [
        position for start, end in zip(spans[::2], spans[1::2], strict=True) for position in range(start, end)
    ]
    if ids[: len(ours)] != ours or [index for index, flag in enumerate(mask) if flag and index] != loss_tokens:
        return None
    return RowSize(prompt=0, responses=[len(ids)], loss_tokens=len(loss_tokens))


def measure_pair(tokenizer: Any, row: Row, example: dict[str, Any], limit: int) -> RowSize | None:
    """Size of a pair as TRL tokenises it; None if smollit has other tokens."""
    prompt = row["chosen"][:-1]
    if row["rejected"][:-1] != prompt:
        return None
    ids = render(tokenizer, prompt, add_generation_prompt=True)["input_ids"]
    if ids != example["prompt_ids"]:
        return None
    for name in ("chosen", "rejected"):
        if render(tokenizer, row[name])["input_ids"][:limit] != ids + example[f"{name}_ids"]:
            return None
    responses = [len(example["chosen_ids"]), len(example["rejected_ids"])]
    return RowSize(prompt=len(ids), responses=responses, loss_tokens=sum(responses))


def render(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> dict[str, list[int]]:
    """A conversation as TRL tokenises it: as one text."""
    return tokenizer.apply_chat_template(messages, chat_template=TRL_CHATML, tokenize=True, return_dict=True, **options)
