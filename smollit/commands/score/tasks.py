"""Scores of lm_eval's tasks: benchmarks whose data, prompts and metrics are lm_eval's."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from smollit.commands.chat.speaker import find_device
from smollit.commands.score.interval import Rows, rows_of
from smollit.data.template.tokenize import load_tokenizer
from smollit.errors import first_line
from smollit.models.pretrained import load_model

log = logging.getLogger(__name__)
TASK_ROWS = 32  # that lm_eval gives the model together


def score_tasks(
    tasks: list[Any], source: str, *, max_rows: int, batch_size: int, apply_chat_template: bool
) -> Iterator[tuple[str, Rows]]:
    """Each metric of each of lm_eval's tasks, from its value of each row."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = load_model(source, weights="pretrained", dtype=torch.float32, dropout=None).eval().to(find_device())
    found = simple_evaluate(
        HFLM(pretrained=model, tokenizer=load_tokenizer(source), batch_size=batch_size),
        tasks=tasks,
        limit=max_rows,
        bootstrap_iters=0,  # the intervals are ours
        apply_chat_template=apply_chat_template,
    )
    for task, samples in found["samples"].items():
        yield from means(task, samples, found["results"][task])


def load_tasks(names: list[str]) -> list[Any]:
    """lm_eval's tasks of these names, patterns of names, or YAML files.

    Raises:
        ValueError: If lm_eval is not installed, has no such task, or its data cannot be loaded.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("`score --tasks` needs lm_eval: pip install 'smollit[score]'")
    from lm_eval.tasks import TaskManager

    files = {name for name in names if Path(name).is_file()}
    manager = TaskManager(include_defaults=files != set(names))  # the list of all takes seconds
    found: list[Any] = []
    for name in names:
        known = [name] if name in files else manager.match_tasks([name])
        if not known:
            raise ValueError(f"lm_eval has no task {name}: `lm_eval ls tasks` prints their names")
        try:
            found += manager.load(known)["tasks"].values()
        except OSError as error:  # offline, or no such data set
            raise ValueError(f"the data of lm_eval's task {name} cannot be loaded: {first_line(error)}") from error
    return found


def means(task: str, samples: list[dict[str, Any]], results: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    """The metrics that are means over rows, as lm_eval's own value says; others are named."""
    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            values[metric, sample["filter"]].append(sample[metric])
    for (metric, chosen), each in values.items():
        label = f"{task}/{metric}" + ("" if chosen == "none" else f"/{chosen}")
        if is_mean(each, results.get(f"{metric},{chosen}")):
            yield label, rows_of([(float(value), 1.0) for value in each])
        else:
            log.warning("left out, since it is no mean over rows: %s", label)


def is_mean(values: list[Any], result: Any) -> bool:
    """Whether lm_eval's result is the mean of its values of the rows."""
    numbers = [value for value in values if isinstance(value, bool | int | float)]
    return len(numbers) == len(values) and math.isclose(sum(numbers) / len(numbers), result, rel_tol=1e-9, abs_tol=1e-9)
