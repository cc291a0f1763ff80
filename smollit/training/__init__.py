"""The parts of every run: the trainer, exact resume, graceful stops, the validation schedule."""

from smollit.training.scores.difficulty import InstructionDifficulty
from smollit.training.scores.reference import ReferenceScores
from smollit.training.trainer import SmollitTrainer

__all__ = ["InstructionDifficulty", "ReferenceScores", "SmollitTrainer"]
