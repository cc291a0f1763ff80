"""Lightning callbacks for a config's `trainer.callbacks`. Add your own here: `smollit` never imports this package."""

from callbacks.export_hugging_face import ExportHuggingFace
from callbacks.sample_generations import SampleGenerations
from callbacks.throughput import Throughput

__all__ = ["ExportHuggingFace", "SampleGenerations", "Throughput"]
