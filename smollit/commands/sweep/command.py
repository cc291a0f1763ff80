"""The command `sweep`: its arguments, the runs one after the other, and the table of what they reached."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.report.page import write_report
from smollit.commands.report.run import read_run
from smollit.commands.report.validated import ACCURACIES, OTHER_SCALE, losses_compare, validated_rows
from smollit.commands.sweep.grid import Variant, take_swept, variants
from smollit.commands.sweep.process import fit
from smollit.modules import DPOModule, FineTuningModule
from smollit.paths import write_whole
from smollit.training.checkpoints.best import Mode, direction
from smollit.training.logs.table import FILE, read_table

log = logging.getLogger(__name__)
FOLDER = "sweep"  # in the run folder
RESULTS = "sweep.json"
MODES: dict[str, Mode] = {"min": "min", "max": "max"}
FAILED = 1  # exit code of a run that can't continue, such as one whose loss is not finite: the others are made


@dataclass(frozen=True)
class Result:
    """What a run has reached.

    Args:
        name: Name of the run.
        values: Its values of the settings that are swept.
        exit_code: 0 for a run that has ended.
        value: The best value of the metric; None if it was never measured.
        step: Its optimizer step.
        interval: Its 95 % interval by bootstrap over the validation rows; None for metrics that have no value per row.
    """

    name: str
    values: dict[str, str]
    exit_code: int
    value: float | None = None
    step: int | None = None
    interval: tuple[float, float] | None = None


@dataclass(kw_only=True)
class SweepCommand(Command):
    """Train once for each value of a setting, and compare: `--model.learning_rate 1e-6,5e-6,2e-5`.

    The runs are made one after the other, in folders of their own below `sweep` in the run folder. The same command
    resumes a sweep that was stopped or killed, and repeats no run that has ended.

    Args:
        swept: Values of each setting, by its name. On the command line, a setting with several values between commas
            is swept; of several such settings, all combinations are. A text of several words is one value.
        metric: Validation metric by which runs are compared; `min:` or `max:` in front says what is better where the
            metric itself does not. null takes val/loss, or val/rewards/accuracies for DPO runs whose `model.loss` or
            reference is swept: their losses have other kinds or scales, and do not compare.
        json: Print one JSON object instead of a table.
        ckpt_path: Not used; accepted so that one config serves all commands.
    """

    swept: dict[str, list[str]] = field(default_factory=dict)
    metric: str | None = None
    json: bool = False
    ckpt_path: str | None = None

    @classmethod
    def words(cls, words: Sequence[str]) -> list[str]:
        """Several values with commas between them -> `swept`; the first ones stay, so that the parser sees them."""
        own = frozenset({"config", *(each.name for each in fields(cls))})
        kept, swept = take_swept(words, own)
        return [*kept, f"--swept={json.dumps(swept)}"] if swept else kept

    def run(self, run: ConfiguredRun) -> None:
        """Train with each combination of values, and compare.

        Raises:
            SystemExit: If a run is stopped, or fails before its first step, with its exit code; the others wait.
        """
        planned = list(variants(self.swept)) if self.swept else []
        if len(planned) < 2:
            raise ValueError("`sweep` needs a setting with several values: --model.learning_rate 1e-6,5e-6,2e-5")
        names = [variant.name for variant in planned]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"`sweep` names a run after its values, and several would be {', '.join(twice)}")
        settings = {variant.name: run.fit_settings(variant.words) for variant in planned}  # all are verified first
        metric, mode = self.ranking(
            run.model, [yaml.safe_load(text)["model"]["init_args"] for text in settings.values()]
        )
        log.info(
            "sweep: %s runs, of %s",
            len(planned),
            "; ".join(f"{name}: {', '.join(each)}" for name, each in self.swept.items()),
        )
        folder = run.folder / FOLDER
        results = list(self.results(folder, planned, settings, metric=metric, mode=mode))
        ended = [result for result in results if result.value is not None]
        best = min(ended, key=lambda each: sign(mode) * (each.value or 0.0)) if ended else None
        summary = {"metric": metric, "best": best.name if best else None, "runs": [asdict(each) for each in results]}
        write_whole(folder / RESULTS, json.dumps(summary, indent=2) + "\n")
        if ended:
            write_report([read_run(str(folder / each.name)) for each in ended], folder)
        if self.json:
            print(json.dumps(summary))
        else:
            show(results, best, metric, folder)
        if best is None:
            raise SystemExit(FAILED)

    def ranking(self, model: FineTuningModule, models: Sequence[Mapping[str, Any]]) -> tuple[str, Mode]:
        """The metric, and what is better; a warning where it does not compare.

        Args:
            model: A module that has the metrics.
            models: `model.init_args` of each run.

        Raises:
            ValueError: If the metric is written wrongly, or it is not known whether less or more of it is better.
        """
        do_compare = not isinstance(model, DPOModule) or losses_compare(models)
        given, _, metric = (self.metric or ("val/loss" if do_compare else f"val/{ACCURACIES}")).rpartition(":")
        if given and given not in MODES:
            raise ValueError(f"`metric` takes a metric such as val/loss, or min:NAME or max:NAME, got {self.metric!r}")
        if not do_compare and (self.metric is None or metric.endswith(("/loss", "/margins"))):
            advice = f"set `--metric val/{ACCURACIES}`" if self.metric else f"they are ranked by {metric}"
            log.warning("losses and margins do not compare: %s; %s", OTHER_SCALE, advice)
        return metric, MODES[given] if given else direction(model, metric, "metric")

    def results(
        self, folder: Path, planned: Sequence[Variant], settings: dict[str, str], *, metric: str, mode: Mode
    ) -> Iterator[Result]:
        """Make each run that has not ended yet."""
        for number, variant in enumerate(planned, 1):
            config, done = folder / f"{variant.name}.yaml", folder / f"{variant.name}.done"
            text = settings[variant.name]
            if done.is_file() and done.read_text(encoding="utf-8") == text:
                log.info("sweep: run %s of %s, %s, has ended already", number, len(planned), variant.name)
                code = 0
            else:
                log.info("sweep: run %s of %s, %s", number, len(planned), variant.name)
                write_whole(config, text)
                code = fit(config, folder / variant.name, to_stderr=self.json)
            if code == 0:
                write_whole(done, text)
            elif code != FAILED or not read_table(folder / variant.name / FILE):
                raise SystemExit(code)  # stopped, or it made no step, as the others would not
            yield result_of(folder / variant.name, variant, code, metric=metric, mode=mode)


def sign(mode: Mode) -> int:
    """1 if the smallest value is the best, else -1."""
    return 1 if mode == "min" else -1


def result_of(folder: Path, variant: Variant, code: int, *, metric: str, mode: Mode) -> Result:
    """The best value of the metric over the validations of a run; none of a run that failed."""
    if code:
        return Result(variant.name, variant.values, code)
    points = read_run(str(folder)).curves.points(metric)
    if not points:
        return Result(variant.name, variant.values, code)
    step = min(points, key=lambda step: sign(mode) * points[step])
    rows = validated_rows(folder, metric, step)
    found = rows.measured.interval() if rows else None
    between = (found.low, found.high) if found else None
    return Result(variant.name, variant.values, code, points[step], step, between)


def undecided(results: Sequence[Result], best: Result, metric: str, folder: Path) -> list[str]:
    """Runs whose difference to the best one, over the same validation rows, has an interval that holds 0."""
    of_best = validated_rows(folder / best.name, metric, best.step or 0)
    found = []
    for each in results:
        rows = validated_rows(folder / each.name, metric, each.step or 0) if each is not best and each.value else None
        change = of_best.change(rows) if rows and of_best else None
        if change:
            found += [each.name] if change.low <= 0 <= change.high else []
    return found


def show(results: Sequence[Result], best: Result | None, metric: str, folder: Path) -> None:
    """The table, the best run, and where the report is."""
    console, table = Console(), Table("run", metric, "95 % interval", "step", "")
    for each in results:
        between = f"{each.interval[0]:.4f} to {each.interval[1]:.4f}" if each.interval else ""
        failed = f"ended with code {each.exit_code}" if each.exit_code else "not measured"
        value = f"{each.value:.4f}" if each.value is not None else failed
        table.add_row(each.name, value, between, str(each.step or ""), "best" if each is best else "")
    console.print(table)
    if any(each.value is None and not each.exit_code for each in results):
        console.print(f"{metric} was not measured: `trainer.val_every_n_steps` validates within a run", markup=False)
    if best:
        if doubt := undecided(results, best, metric, folder):
            console.print(f"not told apart from the best by these rows: {', '.join(doubt)}", markup=False)
        words = " ".join(f"--{setting} {value}" for setting, value in best.values.items())
        console.print(f"best: {words}", markup=False, highlight=False)
        console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False)
