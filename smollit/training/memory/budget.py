"""BatchTokens: `data.max_batch_tokens: auto`, the largest micro-batch that a GPU has memory for, by trial passes."""

import logging
from collections import Counter

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from smollit.batch import Batch
from smollit.data import ChatDataModule
from smollit.models.adapters.joined import forget_outputs
from smollit.modules import DPOModule, FineTuningModule
from smollit.training.checkpoints.ranks import get_random_state, set_random_state
from smollit.training.checkpoints.state import RunState
from smollit.training.memory.device import free_bytes, held_bytes, is_out_of_memory, is_sharded, peak_bytes
from smollit.training.steps import data_module

log = logging.getLogger(__name__)
MEASURED = ("cuda",)  # devices whose memory has a peak that can be measured
RESERVE = 0.1  # fraction of the memory that stays free: micro-batches differ in size, and freed memory is in pieces
MOST_ROWS = (4, 2)  # rows of the second trial; fewer where there is no memory for the first


class Meter:
    """Memory of a GPU.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        """Forget the peak of earlier passes, and what the allocator keeps of them."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Most bytes that tensors held since the start."""
        return peak_bytes(self.device)

    def total(self) -> int:
        """Bytes that tensors of this process can have."""
        torch.cuda.empty_cache()
        return (free_bytes(self.device) or 0) + held_bytes(self.device)


class BatchTokens(Callback):
    """Finds `data.max_batch_tokens: auto` at the start of a new run; a resumed one has it from its checkpoint.

    Args:
        run_state: Knows whether the run resumes; Lightning's trainer does not know it yet when callbacks are set up.
    """

    def __init__(self, run_state: RunState) -> None:
        self.run_state = run_state

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = data_module(trainer)
        if stage != "fit" or not isinstance(data, ChatDataModule) or not isinstance(pl_module, FineTuningModule):
            return
        if data.lacks_batch_tokens and not self.run_state.resumes:
            check_device(trainer)
            number = find_batch_tokens(trainer, pl_module, data)
            log.info(
                "`data.max_batch_tokens`: auto is %s positions here; a micro-batch also ends at %s rows, which is"
                " `data.train_batch_size`",
                f"{number:,}",
                data.train_batch_size,
            )
            data.use_batch_tokens(number)


def check_device(trainer: Trainer) -> None:
    """Refuse devices whose peak can't be measured, and weights that are divided among devices.

    Raises:
        ValueError: Names what to set instead.
    """
    kind, instead = trainer.strategy.root_device.type, "give a number; `python -m smollit estimate` shows the largest"
    if kind not in MEASURED:
        raise ValueError(f"`data.max_batch_tokens: auto` measures a GPU, and this run is on a {kind}: {instead}")
    if is_sharded(trainer):
        raise ValueError(f"`data.max_batch_tokens: auto` measures whole models, and fsdp divides them: {instead}")


def find_batch_tokens(trainer: Trainer, module: FineTuningModule, data: ChatDataModule) -> int:
    """The largest number of positions of a micro-batch for which every rank has memory.

    The peak of a forward and backward pass is taken to grow by the same number of bytes with each position.

    Args:
        trainer: Gives device and precision.
        module: Its model is loaded, if it is not yet; the weights stay as they are.
        data: The data module, whose longest row is tried alone, and then several times in a micro-batch.
    """
    device, random_state, documents = trainer.strategy.root_device, get_random_state(), data.documents("train")
    module.configure_model()
    module.to(device)
    module.policy.train()
    if isinstance(module, DPOModule) and module.scorer.has_model:
        module.scorer.place(device)
    longest = max(range(len(documents.lengths)), key=documents.lengths.__getitem__)
    row, length, meter = documents.__getitems__([[longest]]), documents.lengths[longest], Meter(device)
    one_pass(trainer, module, data.collate(row), meter)  # makes the gradients, which later passes find
    alone = one_pass(trainer, module, data.collate(row), meter)
    found = length
    for rows in MOST_ROWS:
        try:
            together = one_pass(trainer, module, data.collate(row * rows), meter)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            forget_outputs(module.policy)
            continue
        per_position = max((together - alone) / (length * (rows - 1)), 1.0)
        room = meter.total() * (1 - RESERVE) - alone - later_bytes(module, trainer.world_size)
        found = length + max(int(room / per_position), 0)
        break
    module.zero_grad()
    module.metrics_of("train").reset()
    set_random_state(random_state)
    return int(trainer.strategy.reduce(torch.tensor(found, dtype=torch.float64, device=device), reduce_op="min"))


def one_pass(trainer: Trainer, module: FineTuningModule, batch: Batch, meter: Meter) -> int:
    """Bytes at the peak of a forward and backward pass."""
    meter.start()
    scored = batch._replace(reference_logps=torch.zeros(len(batch.response_lengths)))  # precomputed ones may be missing
    with trainer.precision_plugin.forward_context():
        loss = module.step(move_data_to_device(scored, module.device), "train")[0] / module.nominal_count
    loss.backward()
    return meter.peak()


def later_bytes(module: FineTuningModule, world_size: int) -> int:
    """Bytes that come after the first pass: the optimizer's state, and the buckets in which ddp sends gradients."""
    return optimizer_bytes(module) + (world_size > 1) * sum(weight.nbytes for weight in trainable(module))


def trainable(module: FineTuningModule) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [weight for weight in module.policy.parameters() if weight.requires_grad]


def optimizer_bytes(module: FineTuningModule) -> int:
    """Bytes of the optimizer's state, from a real step on one tensor of each shape, on the CPU."""
    size = 0
    for (shape, dtype), count in Counter((weight.shape, weight.dtype) for weight in trainable(module)).items():
        weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
        weight.grad = torch.zeros_like(weight)
        optimizer = module.optimizer([weight])
        optimizer.step()
        size += count * sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, Tensor))
    return size
