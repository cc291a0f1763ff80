"""From a data module to what `inspect` looks at."""

from dataclasses import replace
from typing import Any

from smollit.commands.inspect.view import SplitView
from smollit.data import ChatDataModule
from smollit.data.encoding.cache import EncodedPart

SPLITS = ("train", "val", "test")


def views(data: ChatDataModule) -> dict[str, list[SplitView]]:
    """The parts of train, val and test as training has them: tokenised if need be, and not refused if they are bad.

    Each knows the others, whose rows it should not share.
    """
    alone = {name: [_view(part, data) for parts in data.parts(name).values() for part in parts] for name in SPLITS}
    everything = [(name, view) for name, found in alone.items() for view in found]
    return {
        name: [
            replace(view, others=[other for kind, other in everything if kind != name and other.name != view.name])
            for view in found
        ]
        for name, found in alone.items()
    }


def _view(part: EncodedPart, data: ChatDataModule) -> SplitView:
    part.build(data.num_proc)
    examples, report = part.read()

    def row(index: int) -> dict[str, Any]:
        return part.source.rows[index]

    return SplitView(part.label, report.rows, row, part.encoder, examples, report, data.max_dropped_share)
