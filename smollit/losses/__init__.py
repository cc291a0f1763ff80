"""Losses as small objects without state: equation, paper and arguments in one class. `model.loss` selects one."""

from smollit.losses.base import CompletionLoss, PreferenceLoss
from smollit.losses.dpo import DPO
from smollit.losses.hinge import Hinge
from smollit.losses.ipo import IPO
from smollit.losses.nll import NLL

__all__ = ["DPO", "IPO", "NLL", "CompletionLoss", "Hinge", "PreferenceLoss"]
