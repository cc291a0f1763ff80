"""The reference of DPO: frozen beside the policy, waiting in the CPU's memory, or scored beforehand and on disk."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from smollit.batch import Batch
from smollit.models.causal_lm import TokenScores
from smollit.models.pretrained import weights_fingerprint
from smollit.modules.precomputed import precompute

if TYPE_CHECKING:
    from smollit.modules.base import FineTuningModule

ReferenceMode = Literal["frozen", "offloaded", "precomputed"]


class ReferenceScorer:
    """Log-probabilities of both answers under the weights that the run began with.

    Not a module: so its weights are out of checkpoints, the optimizer and train().

    Args:
        name: Hub id or folder.
        mode: Where it is kept: see DPOModule.
    """

    def __init__(self, name: str, mode: ReferenceMode) -> None:
        self.name = name
        self.mode = mode
        self.identity: dict[str, Any] = {"source": name, "fingerprint": None}
        self._model: nn.Module | None = None
        self._is_sharded = False

    @property
    def model(self) -> nn.Module:
        """The frozen model: eval mode, no gradients, never changed."""
        assert self._model is not None, "configure() loads the reference, unless it is precomputed"
        return self._model

    @property
    def has_model(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    def configure(self, module: "FineTuningModule") -> None:
        """Load the model as its source has it, whatever the policy becomes; or see that all values are on disk."""
        if self.mode == "precomputed":
            self.identity["fingerprint"] = precompute(module, self.name)
        elif self._model is None:
            model = module.load(self.name).requires_grad_(False).eval()
            self.identity["fingerprint"] = weights_fingerprint(self.name)
            self._is_sharded = module.device_mesh is not None
            self._model = module.shard(model) if self.mode == "frozen" else model

    def place(self, device: torch.device) -> None:
        """Lightning does not know the reference, so it is moved here; a sharded one stays where it is."""
        if self.mode == "frozen" and not self._is_sharded:
            self.model.to(device)

    @torch.no_grad()
    def logps(self, batch: Batch) -> Tensor:
        """log p(answer | prompt) of chosen and rejected, [N, 2].

        Raises:
            ValueError: If values that should be precomputed are not in the batch.
        """
        if self.mode != "precomputed":
            score = self.model if self.mode == "frozen" else self._score_offloaded
            return score(batch).sums[batch.pairs]
        if batch.reference_logps is None:
            raise ValueError(
                "`model.reference: precomputed` has no values for these pairs: the data module must be smollit's, and"
                " its rows must be those that were scored"
            )
        return batch.reference_logps[batch.pairs]

    def _score_offloaded(self, batch: Batch, **options: Any) -> TokenScores:
        """The weights go to the batch's device for this call only."""
        device = batch.input_ids.device
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return functional_call(self.model, moved, (batch,), options)

    def check_identity(self, kept: dict[str, Any] | None) -> None:
        """Refuse to go on beside another reference.

        Raises:
            ValueError: If the weights are not those that the run began with.
        """
        if kept and kept["fingerprint"] != self.identity["fingerprint"]:
            raise ValueError(
                f"this run began beside the reference {kept['source']}, and {self.name} now holds other weights:"
                " rewards would change their meaning. Give the original reference, or start a new run"
            )
