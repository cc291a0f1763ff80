"""The needs of a run before it starts: memory by part, tokens, steps and time."""

from dataclasses import dataclass

import torch

from smollit.batch import Batch
from smollit.commands.estimate.epoch import Epoch, Rows, describe_epoch, heaviest, num_devices, positions
from smollit.commands.estimate.memory import Parts, measure
from smollit.data import ChatDataModule
from smollit.modules import FineTuningModule
from smollit.training import SmollitTrainer
from smollit.training.memory.advice import advice
from smollit.training.memory.budget import trainable
from smollit.training.memory.device import free_bytes, held_bytes


@dataclass(frozen=True)
class Estimate:
    """What a run needs."""

    parameters: int  # of the policy
    trainable: int  # those of them that training changes
    memory: Parts  # bytes of each part at the peak, on one device; the sum is the peak, a lower bound without a probe
    heaviest: tuple[int, int]  # rows and positions of the micro-batch that needs the most memory
    free: int | None  # bytes that the device has free for the run; None if it does not report it
    fits: bool | None  # None if `free` is unknown
    most_positions: int | None  # the largest number of positions of a micro-batch that fits
    epoch: Epoch
    seconds_per_step: float | None  # of an optimizer step; None without a probe
    hours: float | None  # of the whole run, without validation; None without a probe
    advice: list[str]  # settings that need less memory, in the order to try

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())


def estimate(
    trainer: SmollitTrainer, module: FineTuningModule, data: ChatDataModule, *, time_probe: bool = True
) -> Estimate:
    """Estimate a run.

    Args:
        trainer: Gives precision, devices, accumulation and the length of the run.
        module: Its model is loaded, and trained for a few steps if there is memory for it.
        data: The data module, whose rows are tokenized if needed.
        time_probe: Whether to run real steps.

    Raises:
        ValueError: If the data are streamed, so the number and lengths of rows are unknown, or the largest micro-batch
            is to be found by the run.
    """
    if data.streaming:
        raise ValueError(
            "`estimate` needs the lengths of all rows, which `data.streaming` does not have: set it to false, and use"
            " a slice such as `data.train_split: train[:1000]`"
        )
    if data.lacks_batch_tokens:
        raise ValueError("`estimate` shows the largest `data.max_batch_tokens` that fits: give it a number, not auto")
    data.set_accumulation(trainer, num_devices(trainer))
    data.prepare_data()
    data.setup("fit")
    batches, device = list(data.sampler()), trainer.strategy.root_device  # micro-batches as for a single device
    free, held = free_bytes(device), held_bytes(device)
    module.trainer, module.compile_policy = trainer, False  # compiled or not, memory is about the same
    trainer.datamodule = data  # as `fit` does: the model gets an embedding for each token
    module.configure_model()
    lengths = data.documents("train").lengths
    sizes = [positions(lengths, batch, module.attention) for batch in batches]
    epoch = describe_epoch(data, batches, sizes, trainer)
    tried = heaviest(sizes, trainer.accumulate_grad_batches, epoch.run_steps)
    micro_batches = [fetch(data, batches[index]) for index in tried]
    found = measure(trainer, module, micro_batches, free=free, held=held, probe=time_probe)
    memory, fullest = found.parts, tried[found.fullest]
    rows, size = len(batches[fullest]), sizes[fullest]
    # Passes of the last micro-batch that take as long as those of a step.
    passes = trainer.accumulate_grad_batches * epoch.computed / len(batches) / sizes[tried[-1]]
    seconds = passes * found.seconds[0] + found.seconds[1] if found.seconds else None
    return Estimate(
        parameters=sum(weight.numel() for weight in module.policy.parameters()),
        trainable=sum(weight.numel() for weight in trainable(module)),
        memory=memory,
        heaviest=(rows, size),
        free=free,
        fits=None if free is None else sum(memory.values()) - held <= free,
        most_positions=None if free is None else most_positions(memory, size, free),
        epoch=epoch,
        seconds_per_step=seconds,
        hours=None if seconds is None else seconds * epoch.run_steps / 3600,
        advice=[str(entry) for entry in advice(trainer, module, data)],
    )


def fetch(data: ChatDataModule, rows: Rows) -> Batch:
    """The batch of these rows, as in training, with zeros for reference scores that are not computed yet."""
    batch = data.collate(data.documents("train").__getitems__(rows))
    return batch._replace(reference_logps=torch.zeros(len(batch.response_lengths)))


def most_positions(memory: Parts, size: int, free: int) -> int:
    """Largest number of positions of a micro-batch that fits, if activations grow with them and all else stays."""
    room = free - (sum(memory.values()) - memory["process"])
    return max(int(size * (1 + room / max(memory["activations"] + memory.get("allocator", 0), 1))), 0)
