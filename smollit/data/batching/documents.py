"""Documents: what batches are made of. A chat is one, and so are the pairs of a prompt that stand beside one another.

The prompt of a document stands in a batch once, and so does each of its responses: four rated responses, which make six
pairs, take the positions of one prompt and four responses.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset

from smollit.data.batching.dataset import Example, Examples
from smollit.data.encoding.steps import PAIR_NUMBERS

OTHERS = "others"  # of the first pair of a document: the pairs that share its prompt


class PairSize(NamedTuple):
    """A pair as numbers: digests tell which token ids are equal. The names are those of the columns of an example."""

    prompt_digest: int
    chosen_digest: int
    rejected_digest: int
    chosen_tokens: int
    loss_tokens: int
    length: int

    @property
    def responses(self) -> dict[int, int]:
        """The tokens of each response by its digest."""
        return {
            self.chosen_digest: self.chosen_tokens,
            self.rejected_digest: self.loss_tokens - self.chosen_tokens,
        }


class Documents(TorchDataset[Example]):
    """The documents of examples, in their order: the sampler orders and packs documents, and batches hold them.

    Args:
        examples: Chats or pairs.
        longest: Maximum number of positions of a document of several pairs. Where the responses to a prompt take more,
            its pairs are divided into several documents.
    """

    def __init__(self, examples: Examples, longest: int) -> None:
        self.examples = examples
        self.starts: Sequence[int] = range(len(examples) + 1)  # the first example of each document, and the end
        self.lengths: Sequence[int] = examples.lengths
        self.sizes: list[int] = examples.sizes  # of each part
        if "prompt_digest" in examples.rows.column_names:
            self._share_prompts(longest)

    def _share_prompts(self, longest: int) -> None:
        prompts = self.examples.column("prompt_digest")
        if not (prompts[1:] == prompts[:-1]).any():  # every prompt has one pair
            return
        columns = [self.examples.column(name).tolist() for name in (*PAIR_NUMBERS, "loss_tokens", "length")]
        pairs = map(PairSize, *columns)
        of_parts = [list(document_sizes(islice(pairs, size), longest)) for size in self.examples.sizes]
        found = [size for sizes in of_parts for size in sizes]
        self.starts = np.cumsum([0, *(count for count, _ in found)]).tolist()
        self.lengths = [length for _, length in found]
        self.sizes = list(map(len, of_parts))

    @property
    def loss_tokens(self) -> NDArray[np.int64]:
        """Loss tokens of each document: each response of a prompt counts once."""
        before = self.examples.column("length") - self.examples.column("loss_tokens")
        return np.asarray(self.lengths, dtype=np.int64) + 1 - before[list(self.starts[:-1])]

    def row_numbers(self) -> list[int]:
        """The row of each document, over all parts: that of its first example."""
        rows = self.examples.row_numbers()
        return [rows[start] for start in self.starts[:-1]]

    def within(self, examples: range) -> list[range]:
        """The examples of each document; of a document that begins before `examples` or ends after, those inside."""
        inside = np.asarray(self.starts)
        inside = inside[(inside > examples.start) & (inside < examples.stop)]
        bounds = [examples.start, *inside.tolist(), examples.stop]
        return [range(start, end) for start, end in pairwise(bounds)]

    def fetch(self, documents: Iterable[range]) -> list[Example]:
        """Each document as one example."""
        return [joined(examples) for examples in self.examples.__getitems__([list(numbers) for numbers in documents])]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([[index]])[0][0]

    def __getitems__(self, sequences: list[list[int]]) -> list[list[Example]]:
        """The documents of each sequence of a batch: one, or several that are packed."""
        fetched = iter(self.fetch(range(self.starts[n], self.starts[n + 1]) for row in sequences for n in row))
        return [list(islice(fetched, len(row))) for row in sequences]


def joined(pairs: Sequence[Example]) -> Example:
    """The pairs of a document as one example: the first, with the others in `OTHERS`. A single one stays as it is."""
    first, *others = pairs
    return first | {OTHERS: others} if others else first


def pairs_of(document: Example) -> list[Example]:
    """The pairs of a document."""
    return [document, *document.get(OTHERS, ())]


class Compared(NamedTuple):
    """What the pairs of a document compare.

    Args:
        responses: Token ids of each response, once.
        pairs: Indices of the chosen and the rejected response of each pair.
    """

    responses: list[list[int]]
    pairs: list[tuple[int, int]]

    @classmethod
    def of(cls, document: Example) -> "Compared":
        """Find the responses that several pairs of a document have in common."""
        if OTHERS not in document:
            return cls([document["chosen_ids"], document["rejected_ids"]], [(0, 1)])
        numbers: dict[tuple[int, ...], int] = {}
        pairs = []
        for pair in pairs_of(document):
            chosen, rejected = (tuple(pair[name]) for name in ("chosen_ids", "rejected_ids"))
            pairs.append((numbers.setdefault(chosen, len(numbers)), numbers.setdefault(rejected, len(numbers))))
        return cls([list(ids) for ids in numbers], pairs)


def document_sizes(pairs: Iterable[PairSize], longest: int) -> Iterator[tuple[int, int]]:
    """Number of pairs and of positions of each document: pairs of one prompt, as long as they fit in `longest`.

    A document has the positions of its prompt without the last token, and of each response that its pairs compare.
    """
    prompt, responses, count = 0, dict[int, int](), 0
    length = 0
    for pair in pairs:
        both = responses | pair.responses
        alone = pair.length - pair.loss_tokens - 1  # positions of the prompt
        if count and pair.prompt_digest == prompt and alone + sum(both.values()) <= longest:
            responses, count = both, count + 1
        else:
            if count:
                yield count, length
            prompt, responses, count = pair.prompt_digest, pair.responses, 1
        length = alone + sum(responses.values())
    if count:
        yield count, length
