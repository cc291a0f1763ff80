"""Losses as small objects without state: equation, paper and arguments in one class. `model.loss` selects one."""

from smollit.losses.base import CompletionLoss, PreferenceLoss
from smollit.losses.combined import Sum
from smollit.losses.completion import DFT, NLL
from smollit.losses.divergence import FDPO
from smollit.losses.dpo import DPO, EXO, Robust
from smollit.losses.margin import IPO, LNDPO, DiscoPOP, Hinge
from smollit.losses.pointwise import BCO, NCA, SPPO, APODown, APOZero
from smollit.losses.reference_free import CPO, ORPO, SimPO
from smollit.losses.tokenwise import LDDPO, WPO
from smollit.losses.transport import AOT, AOTUnpaired

__all__ = [
    "AOT",
    "BCO",
    "CPO",
    "DFT",
    "DPO",
    "EXO",
    "FDPO",
    "IPO",
    "LDDPO",
    "LNDPO",
    "NCA",
    "NLL",
    "ORPO",
    "SPPO",
    "WPO",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "CompletionLoss",
    "DiscoPOP",
    "Hinge",
    "PreferenceLoss",
    "Robust",
    "SimPO",
    "Sum",
]
