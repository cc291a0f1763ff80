"""Model FLOPs utilisation from compare_trl.py's JSON: python -m compare.utilisation FILE ..."""

import json
import sys
from pathlib import Path
from typing import Any


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """For each contender: its fraction of the rate of a large product, and the rate of the products that it needs."""
    if not found.get("floor"):
        return [f"{name}: no floor was measured"]
    rate = found["floor"]["flops_per_s"]
    shown = []
    for contender, each in found["contenders"].items():
        share, memory = each["floor"]["share"], each["peak_memory"] / 1e9
        shown.append(
            f"{name:<12} {contender:<14} {share:6.1%} of a large product's {rate / 1e12:.1f} TFLOP/s ="
            f" {share * rate / 1e12:.1f} TFLOP/s; {each['tokens_per_s']:,.0f} tokens/s, {memory:.2f} GB"
        )
    return shown


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        print("\n".join(lines(path.stem, json.loads(text))) if text.startswith("{") else f"{path.stem}: no results")
