"""The methods: LoRA and its kin, and any other of peft by its configuration class."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from peft import PeftConfig

CHANGES_THE_BASE = (
    "changes the frozen weights too, which checkpoints and the reference of DPO take from `model.model_name`"
)
# Of peft's `init_lora_weights`: why not.
REFUSED_STARTS = dict.fromkeys(("pissa", "olora", "corda", "loftq", "lora_ga"), CHANGES_THE_BASE) | {
    "eva": "is found in a pass over the data that peft's own function makes, and would be random here"
}


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """Small trainable weights inside a frozen model. A subclass is a frozen dataclass with `peft_config`.

    Args:
        vocabulary: Also train the embeddings and the head, in full: for new tokens. DPO then needs a second model as
            its reference.
    """

    vocabulary: bool = False

    @abstractmethod
    def peft_config(self) -> "PeftConfig":
        """The configuration that peft builds the adapter from."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Adapter):
    """W + (alpha / r) B A for each linear layer but the head: https://arxiv.org/abs/2106.09685. B starts at 0.

    A learning rate that suits it is about ten times that of full fine-tuning.

    Args:
        r: Rank of B A.
        alpha: Scale of B A, divided by r.
        dropout: Dropout before A. 0 by default, because its noise would count as reward in DPO.
        targets: Names of the linear layers, such as [q_proj, v_proj]; null means all but the head.
    """

    rank_stabilized: ClassVar[bool] = False
    has_magnitude: ClassVar[bool] = False
    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"`model.adapter.r` must be at least 1, got {self.r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`model.adapter.dropout` must be at least 0 and below 1, got {self.dropout}")

    def peft_config(self) -> "PeftConfig":
        """peft.LoraConfig."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft says int, and divides it
            lora_dropout=self.dropout,
            target_modules=self.targets or "all-linear",
            use_rslora=self.rank_stabilized,
            use_dora=self.has_magnitude,
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True, kw_only=True)
class RSLoRA(LoRA):
    """LoRA with the scale alpha / sqrt(r), which does not shrink with the rank: https://arxiv.org/abs/2312.03732."""

    rank_stabilized: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """LoRA of the direction of W, and a trained magnitude of each of its columns: https://arxiv.org/abs/2402.09353."""

    has_magnitude: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Peft(Adapter):
    """Any method of peft that changes the model's layers in place, by its configuration class.

    Args:
        config: Import path of the configuration, such as peft.IA3Config.
        options: Its arguments.
    """

    config: str
    options: dict[str, Any] | None = None

    def peft_config(self) -> "PeftConfig":
        """The configuration, by its path."""
        module, _, name = self.config.rpartition(".")
        options = self.options or {}
        start = str(options.get("init_lora_weights")).partition("_niter")[0].lower()
        if start in REFUSED_STARTS:
            raise ValueError(
                f"`model.adapter.options`: `init_lora_weights: {start}` {REFUSED_STARTS[start]}: leave it out"
            )
        if name == "AdaLoraConfig":
            raise ValueError(
                "`model.adapter.config`: AdaLoRA lowers its ranks after each step, by a call of peft's own model,"
                " and would be LoRA of rank `init_r` here: take `model.adapter: LoRA`"
            )
        if options.get("layer_replication"):
            raise ValueError(
                "`model.adapter.options`: `layer_replication` gives the model more layers, which share weights: no"
                " adapter can be merged into them, and the reference of DPO has them too. Leave it out"
            )
        try:
            found: PeftConfig = getattr(import_module(module), name)(**options)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(f"`model.adapter.config` {self.config} can't be made: {error}") from error
        return found
