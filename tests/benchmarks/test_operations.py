"""Launches per micro-batch stay few: benchmarks/operations.py counts them on a CPU."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


# promise: few-launches
@pytest.mark.slow
def test_a_micro_batch_needs_few_launches(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """30 layers, one attention call in each: 32 chats below 6,000 operations, 8 pairs with their reference below 8,000;
    above 30 x 20, for a layer has more than 20."""
    operations = script("operations")
    model = operations.narrow_model(tmp_path)
    for kind, limit in operations.LIMITS.items():
        assert 30 * 20 < operations.count(kind, "varlen", model) < limit
