"""Store: values of the examples of a tokenized data set on disk, in files that appear complete or not at all."""

import logging
import os
import uuid
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)
PART = 256  # examples per file


class Store:
    """Values of the examples of one tokenized data set, [N, 2] in fp32, in files that are written atomically.

    Args:
        folder: Folder of the files.
        num_examples: N.
    """

    def __init__(self, folder: Path, num_examples: int) -> None:
        self.folder = folder
        self.num_examples = num_examples

    def parts(self) -> list[range]:
        """The examples of each file."""
        return [range(start, min(start + PART, self.num_examples)) for start in range(0, self.num_examples, PART)]

    def path(self, part: range) -> Path:
        """The file of a part."""
        return self.folder / f"{part.start:09d}.npy"

    def missing(self, rank: int, world_size: int) -> list[range]:
        """The parts of one rank that are not on disk, or damaged."""
        # Divided before looking: other ranks write meanwhile, and each would find a different remainder.
        return [part for part in self.parts()[rank::world_size] if not self._is_whole(part)]

    def _is_whole(self, part: range) -> bool:
        """Whether the file of a part has all of its values; one that has not is named."""
        path = self.path(part)
        if not path.exists():
            return False
        try:
            if np.load(path).shape == (len(part), 2):
                return True
        except (OSError, ValueError, EOFError):
            pass
        log.warning("%s is damaged: its examples are scored again", path)
        return False

    def write(self, part: range, values: np.ndarray) -> None:
        """Write the values of a part."""
        assert values.shape == (len(part), 2)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{uuid.uuid4().hex}.npy"
        with temporary.open("wb") as content:
            np.save(content, values.astype(np.float32))
            content.flush()
            os.fsync(content.fileno())
        os.replace(temporary, self.path(part))

    def read(self) -> np.ndarray:
        """All values, [N, 2].

        Raises:
            ValueError: If other nodes have written theirs into a folder that this one does not see.
        """
        if not all(self.path(part).exists() for part in self.parts()):
            raise ValueError(f"{self.folder} lacks values that other nodes scored: `data.cache_dir` must be shared")
        parts = [np.load(self.path(part)) for part in self.parts()]
        return np.concatenate(parts) if parts else np.zeros((0, 2), np.float32)
