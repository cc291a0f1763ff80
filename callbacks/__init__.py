"""Lightning callbacks for a config's `trainer.callbacks`. Add your own here: `smollit` never imports this package.

A callback is a class with typed, documented arguments (they become `--help`) and Lightning's hooks. Copy `Throughput`
for a callback that logs numbers, `SampleGenerations` for one that uses the model, `ExportHuggingFace` for files.
"""

from callbacks.bema import BEMA
from callbacks.export_hugging_face import ExportHuggingFace
from callbacks.neftune import NEFTune
from callbacks.sample_generations import SampleGenerations
from callbacks.sync_reference import SyncReference
from callbacks.throughput import Throughput

__all__ = ["BEMA", "ExportHuggingFace", "NEFTune", "SampleGenerations", "SyncReference", "Throughput"]
