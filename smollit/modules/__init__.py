"""LightningModules: supervised fine-tuning and direct preference optimization."""

from smollit.modules.base import FineTuningModule
from smollit.modules.dpo import DPOModule
from smollit.modules.lost_steps import NonFiniteError
from smollit.modules.sft import SFTModule

__all__ = ["DPOModule", "FineTuningModule", "NonFiniteError", "SFTModule"]
