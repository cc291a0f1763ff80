"""No micro-batch waits for the device: nothing is read back from it between two optimizer steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smollit.batch import Batch
from smollit.data.batching.collate import collate_chats, collate_pairs
from smollit.losses import DPO, IPO
from smollit.modules import DPOModule, FineTuningModule, SFTModule

CHATS = [{"input_ids": list(range(30, 35 + i)), "spans": [2, 5 + i], "row": i} for i in range(3)]
PAIRS = [
    {"prompt_ids": [1, 20 + i], "chosen_ids": [30 + i] * (1 + i) + [2], "rejected_ids": [50, 2], "row": i}
    | {"score_gap": 1.0 + i, "reference_chosen": -1.0, "reference_rejected": -2.0}
    for i in range(3)
]
# Their results have a size or a value that the host must know: on a GPU it waits until the device has got there.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_consecutive.default,
}


class NoWaiting(TorchDispatchMode):
    """Fails at an operation that a GPU's host would wait at."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in WAITING or by_mask:
            raise AssertionError(f"the host waits for {func}")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """The guard, and copies to the host, which on a CPU are no operations that it could see."""

    def refuse(tensor: torch.Tensor, *args: Any) -> None:
        raise AssertionError("the host waits for a copy")

    with pytest.MonkeyPatch.context() as patch, NoWaiting():
        for name in ("tolist", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: bool((tensor > 0).any()),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: (tensor > 0).nonzero(),
        lambda tensor: tensor.masked_select(tensor > 0),
        lambda tensor: tensor.unique(),
    ],
)
def test_the_guard_notices(wait: Callable[[torch.Tensor], Any]) -> None:
    """Each way of waiting that it is there for."""
    with pytest.raises(AssertionError, match="the host waits"), no_waiting():
        wait(torch.ones(3))


# promise: no-waits
@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
@pytest.mark.parametrize(
    ("module_class", "options", "batch"),
    [
        (SFTModule, {}, collate_chats([[chat] for chat in CHATS])),
        (SFTModule, {}, collate_chats([CHATS[:2], CHATS[2:]])),
        (DPOModule, {}, collate_pairs([[pair] for pair in PAIRS])),
        (DPOModule, {"loss": DPO(scores="weight", nll_weight=1.0)}, collate_pairs([PAIRS])),
        (DPOModule, {"loss": DPO(scores="offset")}, collate_pairs([PAIRS])),
        (DPOModule, {"reference": "offloaded", "loss": IPO()}, collate_pairs([PAIRS])),
    ],
    ids=["chats", "packed chats", "pairs", "weighted pairs", "pairs with offsets", "offloaded reference"],
)
def test_no_micro_batch_waits(
    tiny_model: Path,
    module_class: type[FineTuningModule],
    options: dict[str, Any],
    batch: Batch,
    checkpointing: Any,
) -> None:
    """Two training steps with their backward passes, and one in validation: the loss is finite, and looked at only
    afterwards."""
    module = module_class(str(tiny_model), gradient_checkpointing=checkpointing, **options)  # type: ignore[call-arg]
    module.configure_model()
    with no_waiting():
        for index in range(2):
            loss = module.training_step(batch, index)
            loss.backward()
        with torch.no_grad():
            module.validation_step(batch, 0)
    assert loss.isfinite()
    assert len(module.window) == 2


def test_precomputed_values_do_not_wait_either(tiny_model: Path) -> None:
    """The reference is in the batch."""
    module = DPOModule(str(tiny_model), reference="precomputed")
    module.configure_model()  # the policy alone
    batch = collate_pairs([PAIRS])
    with no_waiting():
        module.training_step(batch, 0).backward()
    assert len(module.window) == 1
