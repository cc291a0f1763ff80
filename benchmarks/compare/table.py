"""From the results of the contenders to ratios, agreement of the losses, and a table for people."""

import statistics
from typing import Any

from compare.record import Plan

Result = dict[str, Any]
GB = 1e9
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 2e-2}  # relative, of a step's loss


def summarise(result: Result, warmup: int) -> Result:
    """Speeds over the measured steps, from totals: sum of tokens / sum of seconds."""
    seconds = result["seconds"][warmup:]
    total = sum(seconds)
    tokens = sum(result["tokens"][warmup:])
    precompute = result["precompute_seconds"] * len(seconds) / len(result["seconds"])
    return {
        "tokens_per_s": tokens / total,
        "tokens_per_s_with_precompute": tokens / (total + precompute),
        "examples_per_s": sum(result["examples"][warmup:]) / total,
        "peak_memory": result["peak_memory"],
        "step_seconds_median": statistics.median(seconds),
        "step_seconds_mean": statistics.fmean(seconds),
        "seconds_measured": total,
    } | result


def ratios(ours: Result | None, theirs: Result | None) -> dict[str, float] | None:
    """smollit / TRL; None if one of them did not run."""
    if ours is None or theirs is None:
        return None
    return {name: ours[name] / theirs[name] for name in ("tokens_per_s", "examples_per_s", "peak_memory")}


def compare_losses(ours: Result | None, theirs: Result | None, tolerance: float) -> Result | None:
    """How far apart the losses of a step are at most, |a - b| / max(|a|, |b|), warm-up included."""
    if ours is None or theirs is None:
        return None
    pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
    difference = max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs)
    return {"largest_difference": difference, "tolerance": tolerance, "agree": difference <= tolerance}


def floor_of(result: Result, floor: Result | None) -> Result | None:
    """The floor of a contender's measured steps in seconds, and the fraction of its time that this is."""
    if floor is None:
        return None
    flops = floor["flops_with_reference" if result["reference_in_step"] else "flops"]
    seconds = flops / floor["flops_per_s"]
    return {"seconds": seconds, "share": seconds / result["seconds_measured"]}


def missed_rows(result: Result, plan: Plan) -> str | None:
    """A note if a contender did not see each row once."""
    seen, expected = sum(result["tokens"]), sum(size.tokens for size in plan.sizes)
    return None if seen == expected else f"saw {seen} real tokens in all, and the rows have {expected}"


def assemble(plan: Plan, results: dict[str, Result]) -> Result:
    """The object of `--json`, without what is said about rows and versions."""
    floor = results.get("floor")
    found = {name: summarise(result, plan.warmup) for name, result in results.items() if name != "floor"}
    for result in found.values():
        result["floor"] = floor_of(result, floor)
        result["note"] = missed_rows(result, plan)
    ours, trl, tuned = (found.get(name) for name in ("smollit", "trl", "trl-tuned"))
    report = {
        "ratios": ratios(ours, trl),
        "ratios_tuned": ratios(ours, tuned),
        "losses": compare_losses(ours, trl, TOLERANCE[plan.precision]),
        "contenders": found,
        "floor": floor,
    }
    if "smollit-tuned" in found:
        report["ratios_both_tuned"] = ratios(found["smollit-tuned"], tuned)
    return report


def table(report: Result) -> list[str]:
    """Lines for people."""
    lines = [
        f"{'':<14} {'tokens/s':>10} {'examples/s':>11} {'peak GB':>8} {'before GB':>9} {'s/step':>8} {'median':>8}"
        f" {'floor':>6}"
    ]
    for name, found in report["contenders"].items():
        floor = f"{found['floor']['share']:6.1%}" if found["floor"] else f"{'-':>6}"
        lines.append(
            f"{name:<14} {found['tokens_per_s']:10.2f} {found['examples_per_s']:11.4f}"
            f" {found['peak_memory'] / GB:8.2f} {found['memory_before_training'] / GB:9.2f}"
            f" {found['step_seconds_mean']:8.3f} {found['step_seconds_median']:8.3f} {floor}"
        )
    for name in ("ratios", "ratios_tuned", "ratios_both_tuned"):
        if report.get(name):
            shown = ", ".join(f"{key} {value:.3f}" for key, value in report[name].items())
            lines.append(f"{name + ':':<19} {shown}")
    return lines + [line for part in (loss_lines, floor_lines, profile_lines, note_lines) for line in part(report)]


def loss_lines(report: Result) -> list[str]:
    """The curves, one line a contender, and whether they agree."""
    curves = {name: found["losses"] for name, found in report["contenders"].items()}
    lines = ["loss of each step, the warm-up first:"]
    lines += [f"  {name:<14} " + " ".join(f"{loss:.5f}" for loss in losses) for name, losses in curves.items()]
    if report["losses"]:
        word = "agree" if report["losses"]["agree"] else "DO NOT AGREE"
        lines.append(f"smollit and TRL {word}: at most {report['losses']['largest_difference']:.1e} apart, relative")
    return lines


def floor_lines(report: Result) -> list[str]:
    """The rate, and what fraction of a step the products are."""
    if not report["floor"]:
        return []
    rate = report["floor"]["flops_per_s"] / 1e9
    shares = [
        f"{name} {found['floor']['seconds']:.2f} of {found['seconds_measured']:.2f} s"
        for name, found in report["contenders"].items()
    ]
    return [f"floor: a large product runs at {rate:.1f} GFLOP/s; the step's products would take " + ", ".join(shares)]


def profile_lines(report: Result) -> list[str]:
    """Where smollit's step goes."""
    if not report.get("profile"):
        return []
    profile = report["profile"]
    parts = ", ".join(f"{name} {profile[name]:.1%}" for name in ("matrix_products", "attention", "other"))
    inside = profile["products_in_attention"]
    return [
        f"profile of a smollit step: {parts}; of attention, products are {inside:.1%} at the speed of the others:"
        f" {profile['matrix_products'] + inside:.1%} in all"
    ]


def note_lines(report: Result) -> list[str]:
    """What else a reader must know."""
    found = report["contenders"]
    lines = [f"note: {name} {result['note']}" for name, result in found.items() if result["note"]]
    lines += [f"FAILED: {name}: {why}" for name, why in report.get("failed", {}).items()]
    for name, result in found.items():
        if result["precompute_seconds"]:
            lines.append(
                f"note: {name} scored all rows with the reference before the first step, in"
                f" {result['precompute_seconds']:.1f} s, which the steps leave out; with their part of it:"
                f" {result['tokens_per_s_with_precompute']:.2f} tokens/s"
            )
    return lines
