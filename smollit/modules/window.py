"""Window: the micro-batches of one optimizer step, as sums and counts that are divided once."""

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class Window:
    """Loss sums, counts and row numbers since the last optimizer step, without device synchronization."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.counts: list[Tensor | int] = []
        self.example_ids: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.sums)

    def add(self, loss_sum: Tensor, count: Tensor | int, example_ids: Tensor) -> None:
        """Add one micro-batch."""
        self.sums.append(loss_sum.detach())
        self.counts.append(count)
        self.example_ids.append(example_ids)

    def totals(self, strategy: Strategy) -> Tensor:
        """[2]: loss sum and count over all micro-batches and ranks, by one all-reduce."""
        loss_sum = torch.stack([part.float() for part in self.sums]).sum()
        count = torch.as_tensor(sum(self.counts), dtype=torch.float32, device=loss_sum.device)
        totals = strategy.reduce(torch.stack([loss_sum, count]), reduce_op="sum")
        assert isinstance(totals, Tensor)
        return totals

    def rows(self, most: int = 16) -> str:
        """Row numbers, for an error."""
        numbers = torch.cat(self.example_ids).tolist()
        return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")

    def clear(self) -> None:
        """Start the next optimizer step."""
        for entries in (self.sums, self.counts, self.example_ids):
            entries.clear()
