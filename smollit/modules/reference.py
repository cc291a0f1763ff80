"""ReferenceScorer: log-probabilities under DPO's reference, by a frozen or offloaded model, or out of the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from smollit.batch import Batch
from smollit.functional.scores import TokenScores
from smollit.models.adapters import tuners
from smollit.models.compile import compile_layers
from smollit.models.pretrained import weights_fingerprint
from smollit.modules.policy import PolicyModule

ReferenceMode = Literal["frozen", "offloaded", "precomputed"]
ScorerMode = Literal["frozen", "offloaded", "precomputed", "adapter", "none"]


class ReferenceScorer:
    """Log-probabilities of responses under the weights that the run began with, unless `follow` has moved them.

    It is not an nn.Module, so the reference's weights are neither in checkpoints nor in the optimizer, and `train()`
    does not apply to them.

    Args:
        name: Hub id or folder.
        mode: `reference` of DPOModule; `adapter` for the policy without its adapter; `none` for a loss that has no
            reference.
    """

    def __init__(self, name: str, mode: ScorerMode) -> None:
        self.name = name
        self.mode = mode
        self.fingerprint: str | None = None  # identifies the weights; set when the model, or its scores, are loaded
        self._model: nn.Module | None = None
        self._is_sharded = False
        self._module: PolicyModule | None = None
        self._has_moved = False

    @property
    def model(self) -> nn.Module:
        """The frozen model: in eval mode, without gradients, never changed."""
        assert self._model is not None, "configure() loads the reference, unless it is precomputed"
        return self._model

    @property
    def has_model(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    def configure(self, module: PolicyModule) -> None:
        """Load the model from its source, which the policy's training does not change, if the mode needs one."""
        self._module = module
        if self.mode == "none":
            return
        setting = "model_name" if self.name == module.model_name else "reference_name"
        self.fingerprint = self.fingerprint or weights_fingerprint(self.name, setting)
        if self.mode in ("frozen", "offloaded") and self._model is None:
            model = module.load(self.name).requires_grad_(False).eval()
            self._is_sharded = module.device_mesh is not None
            if module.compile_policy and self.mode == "frozen":
                compile_layers(model)
            self._model = module.shard(model) if self.mode == "frozen" else model

    def place(self, device: torch.device) -> None:
        """Move a frozen model, which Lightning does not manage, to the device; a sharded one is not moved."""
        if self.mode == "frozen" and not self._is_sharded:
            self.model.to(device)

    @torch.no_grad()
    def logps(self, batch: Batch) -> Tensor:
        """log pi_ref(y | x) of each response of the batch, [number of responses]; 0 without a reference.

        Raises:
            ValueError: If they should be in the batch and are missing.
        """
        if self.mode in ("frozen", "offloaded", "adapter"):
            return self.scores(batch).sums
        if self.mode == "none":
            return torch.zeros(len(batch.response_lengths), device=batch.input_ids.device)
        if batch.reference_logps is None:
            raise ValueError(
                "`model.reference: precomputed` needs the reference's log-probabilities in each batch, and this one has"
                " none. Use smollit's data modules and SmollitTrainer, or add smollit.training.ReferenceScores() to the"
                " callbacks of another Trainer; or set `model.reference: frozen`"
            )
        return batch.reference_logps

    @torch.no_grad()
    def scores(self, batch: Batch) -> TokenScores:
        """Scores of each loss token by the model of the reference."""
        if self.mode == "adapter":
            assert self._module is not None, "configure() is called first"
            with without_adapter(self._module.policy):
                return self._module.policy(batch)  # type: ignore[no-any-return]  # a module returns Any
        return self._score_offloaded(batch) if self.mode == "offloaded" else self.model(batch)

    def _score_offloaded(self, batch: Batch) -> TokenScores:
        """Score with weights that are on the batch's device for this call only."""
        device = batch.input_ids.device
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return functional_call(self.model, moved, (batch,))

    @torch.no_grad()
    def follow(self, policy: nn.Module, weight: float) -> None:
        """Move the reference towards the policy: (1 - weight) x reference + weight x policy, eq. 3 of TR-DPO.

        https://arxiv.org/abs/2404.09656. From then on, checkpoints hold the reference's weights.

        Raises:
            ValueError: If there is no whole model to move.
        """
        if self._model is None or self._is_sharded:
            raise ValueError(
                "a reference that follows the policy needs `model.reference: frozen` or `offloaded`, and a strategy"
                f" that does not shard it; `model.reference` is {self.mode}"
            )
        for reference, current in zip(self.model.parameters(), policy.parameters(), strict=True):
            reference.lerp_(current.to(reference), weight)
        self._has_moved = True

    @property
    def state(self) -> dict[str, Any]:
        """Source and fingerprint of the reference, for checkpoints, and its weights if they have moved."""
        weights = {"weights": self.model.state_dict()} if self._has_moved else {}
        return {"source": self.name, "fingerprint": self.fingerprint} | weights

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Take moved weights from a checkpoint, and refuse to resume with another reference.

        Raises:
            ValueError: If the weights are not those that the run began with.
        """
        if saved and saved["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"this run began with the reference {saved['source']}, and {self.name} now holds other weights:"
                " rewards would not be comparable. Give the original reference, or start a new run"
            )
        if saved and "weights" in saved:
            self.model.load_state_dict(saved["weights"])
            self._has_moved = True


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model that the adapter was put into, inside the block, in eval mode: for a reference."""
    layers, training = tuners(model), model.training
    for _, layer in layers:
        layer.enable_adapters(False)
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for _, layer in layers:
            layer.enable_adapters(True)
