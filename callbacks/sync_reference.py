"""SyncReference: the reference of DPO follows the policy."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.modules import DPOModule
from smollit.training.steps import at_step_end


class SyncReference(Callback):
    """Moves DPO's reference towards the policy: TR-DPO, https://arxiv.org/abs/2404.09656.

    Every `every_n_steps` optimizer steps, reference = (1 - weight) x reference + weight x policy. Checkpoints then hold
    the reference too, and a resumed run equals one that never stopped.

    Args:
        every_n_steps: Optimizer steps between two moves.
        weight: Weight of the policy, above 0; 1 copies the policy.
    """

    def __init__(self, every_n_steps: int = 512, weight: float = 0.6) -> None:
        if every_n_steps < 1 or not 0 < weight <= 1:
            raise ValueError(
                "SyncReference needs `every_n_steps` of at least 1 and a `weight` above 0 and at most 1, got"
                f" {every_n_steps} and {weight}"
            )
        self.every_n_steps = every_n_steps
        self.weight = weight

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module without a reference model before anything is loaded."""
        if not isinstance(pl_module, DPOModule) or pl_module.scorer.mode not in ("frozen", "offloaded"):
            raise ValueError("SyncReference needs a DPOModule with `model.reference: frozen` or `offloaded`")
        if pl_module.adapter is not None:
            raise ValueError("SyncReference moves whole models, and `model.adapter` trains a part: leave one out")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the reference at the end of the optimizer step."""
        assert isinstance(pl_module, DPOModule)
        if at_step_end(trainer) and trainer.global_step % self.every_n_steps == 0:
            pl_module.scorer.follow(pl_module.policy, self.weight)
