"""Which examples of a split are used, once all are known: repeats and rows of validation may be left out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from smollit.data.encoding.counts import column, count_kept, counted
from smollit.data.encoding.report import Report

Same = Literal["off", "prompt", "row"]


@dataclass(frozen=True)
class LoadedPart:
    """The examples of a part that a split uses.

    Args:
        key: Name of the cache folder, and a hash of the examples that are left out.
        examples: The examples.
        report: Their counts.
    """

    key: str
    examples: Dataset
    report: Report

    def digests(self, same: Same) -> NDArray[np.int64]:
        """What two examples have in common if they are the same prompt or row."""
        is_pair = "prompt_ids" in self.examples.column_names
        name = "digest" if is_pair == (same == "prompt") else "other_digest"
        return column(self.examples, name)

    def without(self, is_out: NDArray[np.bool_], setting: str) -> "LoadedPart":
        """The part without some of its examples, which the report counts under the name of a setting."""
        if not is_out.any():
            return self
        kept = np.flatnonzero(~is_out)
        key = f"{self.key}-{hashlib.sha256(kept.tobytes()).hexdigest()[:16]}"
        examples = self.examples.select(kept)
        counts = count_kept({name: column(examples, name) for name in counted(examples)})
        left_out = self.report.left_out | {setting: int(is_out.sum())}
        report = replace(self.report, **counts, left_out=left_out)
        return LoadedPart(key, examples, report)


def drop_repeats(parts: Sequence[LoadedPart], same: Same) -> list[LoadedPart]:
    """The parts without examples that repeat an earlier one, of whichever part.

    Pairs, or the chats of a thread, that come from one row do not repeat its prompt.
    """
    if same == "off":
        return list(parts)
    seen = np.zeros(0, dtype=np.int64)
    left = []
    for part in parts:
        digests = part.digests(same)
        origin = column(part.examples, "row") if same == "prompt" else np.arange(len(digests))
        _, first, which = np.unique(digests, return_index=True, return_inverse=True)
        is_repeat = origin != origin[first[which]]
        left.append(part.without(is_repeat | np.isin(digests, seen), "`data.dedup`"))
        seen = np.union1d(seen, digests)
    return left


def drop_held_out(parts: Sequence[LoadedPart], held_out: Sequence[LoadedPart], same: Same) -> list[LoadedPart]:
    """The parts without examples that `held_out` has too.

    Raises:
        ValueError: If no example is left.
    """
    if same == "off" or not held_out:
        return list(parts)
    there = np.concatenate([part.digests(same) for part in held_out])
    left = [part.without(np.isin(part.digests(same), there), "`data.drop_val_rows`") for part in parts]
    if not any(len(part.examples) for part in left):
        raise ValueError(
            "every training row stands in validation too, so `data.drop_val_rows` leaves none: set `data.val_split` to"
            " other rows"
        )
    return left
