"""Does a run of a DPO recipe go as TRL's? The first steps in both, on the same rows, in the same order, step by step.

    python benchmarks/trl_recipe.py                                      # a tiny random model, sample rows: seconds
    python benchmarks/trl_recipe.py --model FOLDER --data FOLDER         # a real model and real rows, 50 steps

Needs `pip install -e '.[trl]'`. Exits with 1 if a metric of any step differs by more than 1e-4, which is relative for
numbers above 1.
SmolLM2-135M takes 14 minutes on one core with `--rows 2 --max-length 128`.

Loss, beta, learning rate, schedule and warm-up are the recipe's; rows per step and their length are what the CPU
allows. Both sides use the same schedule, a pure function of the step: TRL's own warm-up begins at 0.
"""

import argparse
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from trl_parity import DPO, PACKAGE, Setting, dpo_trainer, make_tiny, smollit_trainer, write_rows

from smollit.batch import Batch
from smollit.data import UltraFeedbackDataModule
from smollit.functional.pairs import Pairs
from smollit.losses.settings import ALIASES, LOSS
from smollit.modules import DPOModule
from smollit.schedules import SCHEDULE

TOLERANCE = 1e-4
METRICS = [name for name in DPO if name not in ("loss_tokens", "rewards/accuracies")]
RECIPE = PACKAGE / "configs" / "recipes" / "smollm2-135m-dpo.yaml"
Steps = list[dict[str, float]]


class Difference(NamedTuple):
    """The largest difference of a metric over all steps, and where it is."""

    name: str
    size: float
    step: int


class RecordedDPO(DPOModule):
    """DPOModule that keeps the margin of every pair, to know which ones are 0 to rounding."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.margins: list[float] = []
        self.logged: Steps = []

    def pairs(self, batch: Batch, *, entropy: bool = False) -> Pairs:
        """As the base's, recorded."""
        pairs = super().pairs(batch, entropy=entropy)
        self.margins += pairs.margin.tolist()
        return pairs

    def report(self, named: dict[str, Any]) -> None:
        """As the base's, recorded."""
        self.logged.append({name.removeprefix("train/"): float(value) for name, value in named.items()})
        super().report(named)


def theirs(setting: Setting, settings: dict[str, Any], num_steps: int, rows: int) -> Steps:
    """The log of each step of TRL's DPOTrainer."""
    options = {
        "max_steps": num_steps,
        "per_device_train_batch_size": rows,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 1.0,
        "learning_rate": settings["learning_rate"],
    }
    trainer = dpo_trainer(setting, **options)
    optimizer = AdamW(trainer.model.parameters(), lr=settings["learning_rate"], weight_decay=0.0)
    schedule, warmup = SCHEDULE.make(settings["schedule"]), num_warmup(settings, num_steps)
    trainer.optimizer = optimizer
    trainer.lr_scheduler = LambdaLR(optimizer, lambda step: schedule.fraction(step, num_steps, warmup))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{**entry, "gradient_norm": entry["grad_norm"]} for entry in logged]


def ours(setting: Setting, settings: dict[str, Any], num_steps: int, rows: int) -> RecordedDPO:
    """The module after as many steps of smollit, with the log of each."""
    data = UltraFeedbackDataModule(
        str(setting.pairs),
        train_split="train",
        val_split=None,
        tokenizer_name=str(setting.model),
        chat_template="chatml",
        max_length=setting.max_length,
        train_batch_size=rows,
        shuffle=False,
        longest_first=False,
        cache_dir=str(setting.workspace / "cache"),
    )
    module = RecordedDPO(
        str(setting.policy),
        loss=LOSS.find(setting.loss)(beta=setting.beta),
        learning_rate=settings["learning_rate"],
        schedule=settings["schedule"],
        warmup_ratio=settings["warmup_ratio"],
    )
    smollit_trainer(setting, num_steps, gradient_clip_val=1.0).fit(module, datamodule=data)
    return module


def num_warmup(settings: dict[str, Any], num_steps: int) -> int:
    """Warm-up steps of so many steps, rounded up."""
    return -int(-num_steps * settings["warmup_ratio"] // 1)


def compare(trl: Steps, module: RecordedDPO, rows: int) -> list[Difference]:
    """The largest difference of each metric. The accuracy is compared in steps all of whose margins are above 1e-3: TRL
    counts a pair whose margin is 0 as wrong, and what is 0 to rounding counts at random."""
    found = []
    for name in METRICS:
        pairs = [(one[name], other[name]) for one, other in zip(trl, module.logged, strict=True)]
        sizes = [abs(one - other) / max(1.0, abs(one), abs(other)) for one, other in pairs]
        found.append(Difference(name, max(sizes), sizes.index(max(sizes)) + 1))
    clear = [step for step in range(len(trl)) if min(map(abs, module.margins[step * rows : (step + 1) * rows])) > 1e-3]
    name = "rewards/accuracies"
    sizes = [abs(trl[step][name] - module.logged[step][name]) for step in clear] or [0.0]
    return [*found, Difference(f"{name} ({len(clear)} steps)", max(sizes), sizes.index(max(sizes)) + 1)]


def main(args: list[str] | None = None) -> int:
    """Run both, print the table, and report with the exit code whether all steps agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; a tiny random model if left out")
    parser.add_argument("--data", type=Path, help="folder with ultrafeedback_binarized/")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="a DPO recipe")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps")
    parser.add_argument("--rows", type=int, default=4, help="pairs per step")
    parser.add_argument("--max-length", type=int, default=256, help="tokens; both sides truncate on the right")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's, for a model that learns little")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(args)
    if find_spec("trl") is None:
        print("TRL is not installed: pip install -e '.[trl]'", file=sys.stderr)
        return 2
    settings = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))["model"]["init_args"]
    settings["learning_rate"] = options.learning_rate or settings["learning_rate"]
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(options, Path(folder), settings["loss"])
        module = ours(setting, settings, options.steps, options.rows)
        differences = compare(theirs(setting, settings, options.steps, options.rows), module, options.rows)
    for each in differences:
        print(f"| {each.name:<32} | {each.size:10.1e} | step {each.step:3} |")
    agree = all(each.size <= TOLERANCE for each in differences)
    print(f"{options.steps} steps: " + (f"all within {TOLERANCE:g}" if agree else f"NOT all within {TOLERANCE:g}"))
    if options.json:
        first, last = (module.logged[index]["loss"] for index in (0, -1))
        print(json.dumps({"agree": agree, "steps": options.steps, "first_loss": first, "last_loss": last}))
    return 0 if agree else 1


def prepare(options: argparse.Namespace, workspace: Path, loss: dict[str, Any]) -> Setting:
    """Write the rows and the model that both sides read; the policy starts as its reference."""
    model = options.model or make_tiny(workspace / "tiny")
    samples = PACKAGE / "data" / "samples" / "ultrafeedback"
    source = options.data / "ultrafeedback_binarized" if options.data else samples
    num_rows = options.steps * options.rows
    limits = (model, num_rows, options.max_length)
    pairs = write_rows(source, "train_prefs", "preference", *limits, workspace / "pairs.jsonl")
    ours = loss["class_path"].rpartition(".")[2]
    return Setting(
        chats=pairs,
        pairs=pairs,
        model=model,
        policy=model,
        num_rows=num_rows,
        max_length=options.max_length,
        loss=next((theirs for theirs, name in ALIASES.items() if name == ours), ours.lower()),
        beta=loss["init_args"]["beta"],
        workspace=workspace,
    )


if __name__ == "__main__":
    sys.exit(main())
