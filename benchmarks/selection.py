"""Training on the rows that `data.select` keeps, on as many at random, and on all: the tables of docs/select.md.

    python benchmarks/selection.py                       # the tiny model of the demo on the sample rows: 6 minutes
    python benchmarks/selection.py --seeds 1 --steps 2   # shows that it runs

Every run begins with one model, 60 steps of SFT on all chats from random weights, and takes the same number of steps.
The tables have the mean over the seeds, and the standard deviation.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lightning import seed_everything

from smollit import python
from smollit.data import ChatDataModule, UltraChatDataModule, UltraFeedbackDataModule
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer

PACKAGE = Path(__file__).parents[1] / "smollit"
TINY, SAMPLES = str(PACKAGE / "models" / "tiny"), PACKAGE / "data" / "samples"
SHARE, ALL = 0.3, 360
COUNT = round(SHARE * ALL)
METRICS = {"sft": ("val/loss", "val/token_accuracy"), "dpo": ("val/loss", "val/rewards/accuracies")}
SCORES = {
    "sft": ("ifd",),
    "dpo": ("score_gap", "length_controlled_gap", "reference_margin", "response_perplexity"),
}


def main(args: list[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run each of every choice")
    parser.add_argument("--steps", type=int, default=45, help="optimizer steps of each run")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        model = base_model(Path(folder))
        for kind in METRICS:
            print_table(kind, model, Path(folder), options.seeds, options.steps)
    return 0


def base_model(folder: Path) -> str:
    """The model that all runs begin with."""
    seed_everything(0)
    module, data = SFTModule(TINY, weights="random", learning_rate=3e-3), rows("sft", folder / "cache", seed=0)
    run(folder / "base", module, data, steps=60)
    return str(python.export(module, data, folder / "model"))


def print_table(kind: str, model: str, folder: Path, seeds: list[int], steps: int) -> None:
    """One line for all rows, one for as many at random as the others have, and one for each score."""
    choices: dict[str, dict[str, Any]] = {f"all {ALL}": {}, f"{COUNT} at random": {"max_rows": COUNT}}
    choices |= {f"{COUNT} by `{score}`": {"select": score, "select_share": SHARE} for score in SCORES[kind]}
    print(f"| {kind.upper()} on | validation loss | accuracy |\n|---|---|---|")
    for name, choice in choices.items():
        metrics = zip(*(trained(kind, model, folder, seed, steps, **choice) for seed in seeds), strict=True)
        print(f"| {name} | {' | '.join(map(spread, metrics))} |", flush=True)


def trained(kind: str, model: str, folder: Path, seed: int, steps: int, **choice: Any) -> list[float]:
    """The metrics of the validation rows after so many steps of 8 rows."""
    seed_everything(seed)
    data = rows(kind, folder / "cache", seed=seed, **choice)
    if kind == "sft":
        module: FineTuningModule = SFTModule(model, learning_rate=1e-3)
    else:
        module = DPOModule(model, learning_rate=1e-3, reference="precomputed")
    with tempfile.TemporaryDirectory() as run_folder:
        trainer = run(Path(run_folder), module, data, steps)
        found = trainer.validate(module, datamodule=data, verbose=False)[0]
    return [found[name] for name in METRICS[kind]]


def rows(kind: str, cache: Path, **choice: Any) -> ChatDataModule:
    """The sample rows for SFT or DPO, of which some are chosen."""
    make = UltraChatDataModule if kind == "sft" else UltraFeedbackDataModule
    name = "ultrachat" if kind == "sft" else "ultrafeedback"
    return make(
        str(SAMPLES / name), tokenizer_name=TINY, chat_template="chatml", max_length=256, cache_dir=str(cache), **choice
    )


def run(folder: Path, module: FineTuningModule, data: ChatDataModule, steps: int) -> SmollitTrainer:
    """Train for so many steps."""
    trainer = SmollitTrainer(str(folder), accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    return trainer


def spread(values: tuple[float, ...]) -> str:
    """The mean, and the standard deviation over seeds if there are several."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


if __name__ == "__main__":
    raise SystemExit(main())
