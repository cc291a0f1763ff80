"""The parts of every run: the trainer, exact resume, graceful stops, the validation schedule."""

from smollit.training.reference import ReferenceScores
from smollit.training.trainer import SmollitTrainer

__all__ = ["ReferenceScores", "SmollitTrainer"]
