"""The numbers of growth.py as lines for people."""

from typing import Any

Found = dict[str, Any]
MB = 1e6


def table(found: Found) -> list[str]:
    """All parts that were measured, and those that failed."""
    parts = {
        "tokens": token_lines,
        "vocabulary": head_lines,
        "rows": row_lines,
        "start": start_lines,
        "chunk": chunk_lines,
    }
    shown = [lines(found[name]) for name, lines in parts.items() if name in found]
    return [line for lines in shown for line in lines] + [
        f"FAILED: {part}: {why}" for part, why in found["failed"].items()
    ]


def token_lines(found: Found) -> list[str]:
    """Seconds beside the line."""
    lines = [f"\n{'tokens':>8} {'seconds':>9} {'line':>9} {'deviation':>10}"]
    for tokens, seconds, at in zip(found["tokens"], found["seconds"], found["fitted"], strict=True):
        lines.append(f"{tokens:8,} {seconds:9.3f} {at:9.3f} {seconds / at - 1:+10.1%}")
    rate = f"{1000 * found['slope']:.3f} s per 1,000 tokens"
    return [*lines, f"{rate}; largest deviation from the line: {found['largest_deviation']:.1%}"]


def head_lines(found: Found) -> list[str]:
    """Memory, and what it is made of."""
    lines = [
        f"\nhead, forward and backward, {found['tokens']:,} tokens x {found['hidden']} hidden; MB",
        f"{'chunk':>6} {'words':>8} {'memory':>8} {'gradients, chunk':>17} {'rest':>7} {'whole logits':>13}",
    ]
    for cell in found["cells"]:
        memory, expected, rest, whole = (cell[name] / MB for name in ("memory", "expected", "rest", "whole_logits"))
        lines.append(
            f"{cell['chunk_size']:6,} {cell['vocabulary']:8,} {memory:8.1f} {expected:17.1f} {rest:7.1f} {whole:13.1f}"
        )
    return lines


def row_lines(found: Found) -> list[str]:
    """Memory at both numbers of rows."""
    lines = [f"\n{'rows':>8} {'peak MB':>9} {'own MB':>8}"]
    for cell in found["cells"]:
        lines.append(f"{cell['rows']:8,} {cell['peak_memory'] / MB:9.1f} {cell['peak_own_memory'] / MB:8.1f}")
    small, large = found["cells"]
    growth = large["peak_own_memory"] / small["peak_own_memory"]
    return [*lines, f"own memory with ten times the rows: x {growth:.3f}"]


def start_lines(found: Found) -> list[str]:
    """`--help`, and the parts of the way to the first step."""
    parts = found["first_step_seconds"]
    shown = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
    return [
        f"\n--help: {found['help_seconds']:.2f} s",
        f"fit, from its start to the end of the first step: {sum(parts.values()):.2f} s ({shown})",
    ]


def chunk_lines(found: Found) -> list[str]:
    """Seconds and memory of the head at each chunk size."""
    lines = [
        f"\nhead, forward and backward, {found['tokens']:,} tokens x {found['vocabulary']:,} words",
        f"{'head':<13} {'chunk':>6} {'seconds':>9} {'MB':>8}",
    ]
    for cell in found["cells"]:
        size = cell["chunk_size"] or "all"
        lines.append(f"{cell['head']:<13} {size:>6} {cell['seconds']:9.3f} {cell['memory'] / MB:8.1f}")
    return lines
