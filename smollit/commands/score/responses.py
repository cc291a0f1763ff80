"""Scores of generated responses: instructions of IFEval that are followed, and answers of GSM8K."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.fabric.utilities import move_data_to_device

from smollit.commands.score.interval import Rows, rows_of
from smollit.data.batching.collate import collate_prompts, unpacked
from smollit.data.template.template import ChatTemplate
from smollit.models import CausalLM
from smollit.models.generation import cache_bytes
from smollit.paths import json_lines, reading
from smollit.training.memory.device import free_bytes
from smollit.training.predictions import response_text

log = logging.getLogger(__name__)
MOST_ROWS = 128  # generated together: 200 took as long per response as 96, on a CPU
FEW_ROWS = 32  # where the system does not report its free memory
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
Row = dict[str, Any]
# Columns of the rows, the prompt first.
IFEVAL = ("prompt", "instruction_id_list", "kwargs")
GSM8K = ("question", "answer")


def read_rows(path: Path, needed: Sequence[str], max_rows: int) -> list[Row]:
    """The first rows of a JSON Lines file.

    Raises:
        ValueError: If there is no such file, if it has no rows, or if one lacks a column.
    """
    names = ", ".join(f"`{name}`" for name in needed)
    if not path.is_file():
        raise ValueError(f"{path} is not a file: `score` needs JSON Lines with {names}")
    with reading(path):
        rows = list(islice(json_lines(path.read_text(encoding="utf-8")), max_rows))
    if not rows:
        raise ValueError(f"{path} has no rows: `score` needs JSON Lines with {names}")
    for number, row in enumerate(rows):
        missing = [name for name in needed if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"row {number} of {path} has no `{missing[0]}`: `score` needs JSON Lines with {names}")
    return rows


def respond(
    model: CausalLM, template: ChatTemplate, prompts: list[str], *, max_new_tokens: int, batch_size: int | None
) -> list[str]:
    """The greedy response to each prompt; prompts of similar length are generated together.

    Args:
        model: The model.
        template: Its chat template.
        prompts: The user's message of each prompt.
        max_new_tokens: Maximum number of tokens of a response.
        batch_size: Number of responses that are generated together; null takes as many as fit in memory.
    """
    ids = template.encode([template.prompt_text([{"role": "user", "content": prompt}]) for prompt in prompts])
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    found = [""] * len(ids)
    size = batch_size or rows_at_once(model, max(map(len, ids)) + max_new_tokens)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = collate_prompts(unpacked([{"prompt_ids": ids[row], "row": row} for row in rows]))
        batch = move_data_to_device(batch, model.model.device)
        for row, new in zip(rows, model.generate(batch, max_new_tokens, template.stop_ids()), strict=True):
            found[row] = response_text(template, new)
        log.info("%s of %s responses", start + len(rows), len(order))
    return found


def rows_at_once(model: CausalLM, num_tokens: int) -> int:
    """Number of sequences of this length whose keys and values fit in half of the free memory: 1 to MOST_ROWS."""
    free = free_bytes(model.model.device)
    if free is None:
        return FEW_ROWS
    return min(max(free // 2 // (num_tokens * cache_bytes(model.config, model.model.dtype)), 1), MOST_ROWS)


def gsm8k(rows: list[Row], responses: list[str]) -> dict[str, Rows]:
    """Whether the last number of a response is the one after `####` in the answer of the data set."""
    hits = [last_number(said) == last_number(str(row["answer"])) for row, said in zip(rows, responses, strict=True)]
    return {"gsm8k": rows_of([(float(hit), 1.0) for hit in hits])}


def last_number(text: str) -> float | None:
    """The last number in a text, without commas; None if there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def ifeval(rows: list[Row], responses: list[str]) -> dict[str, Rows]:
    """Followed instructions, and prompts all of whose instructions are followed, by lm_eval's verifiers (strict)."""
    verifiers, left_out = load_verifiers(), Counter[str]()
    instructions, prompts = [], []
    for row, response in zip(rows, responses, strict=True):
        known = []
        for name, options in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            try:
                known.append(is_followed(verifiers[name](name), options, prompt=row["prompt"], response=response))
            except LookupError:  # nltk finds no data
                left_out[name] += 1
        instructions.append((float(sum(known)), float(len(known))))
        prompts.append((float(all(known) and bool(known)), float(bool(known))))
    if left_out:
        log.warning("left out, since nltk's data `punkt_tab` is not installed (docs/export.md): %s", dict(left_out))
    return {"ifeval/instructions": rows_of(instructions), "ifeval/prompts": rows_of(prompts)}


def load_verifiers() -> dict[str, Callable[[str], Any]]:
    """lm_eval's class for each instruction.

    Raises:
        ValueError: If lm_eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("`score --ifeval` needs lm_eval's verifiers: pip install 'smollit[score]'")
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    verifiers: dict[str, Callable[[str], Any]] = INSTRUCTION_DICT
    return verifiers


def is_followed(verifier: Any, options: Row, *, prompt: str, response: str) -> bool:
    """Whether a response follows an instruction, given the instruction's own options."""
    verifier.build_description(**{key: value for key, value in options.items() if value})
    arguments = verifier.get_instruction_args()
    if arguments and "prompt" in arguments:
        verifier.build_description(prompt=prompt)
    return bool(response.strip()) and bool(verifier.check_following(response))
