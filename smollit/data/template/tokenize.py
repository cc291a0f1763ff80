"""Text -> token ids, with the template's own special tokens told apart from text that spells them."""

import hashlib
import re
from functools import cached_property
from itertools import accumulate
from threading import Lock
from typing import Literal, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from smollit.data.formats.types import Message
from smollit.data.template.control import control_pattern, plain_tokenizer
from smollit.data.template.renderer import SENTINEL, Renderer

MARKER = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")
MAX_COUNTS = 10_000  # texts between contents are few; those of tool calls may be many
Branch = Literal["shared", "chosen", "rejected"]
_CHANGES = Lock()


class Segment(NamedTuple):
    """A piece of text that is tokenised by itself.

    Args:
        text: The text.
        trained: Whether its tokens are trained.
        message: Index of the message that it belongs to or leads to.
        plain: Whether it spells a control token without being one.
        branch: Whether it belongs to both sequences of a pair, or to one of them; of chats, always `shared`.
    """

    text: str
    trained: bool
    message: int = 0
    plain: bool = False
    branch: Branch = "shared"


class TokenRenderer(Renderer):
    """A chat template with its tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, name: str = "the chat template") -> None:
        super().__init__(tokenizer, text, name)
        self._special_counts: dict[str, int] = {}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text by itself, without special tokens of the tokenizer's own: the template has them."""
        return _encode(self.tokenizer.backend_tokenizer, texts, plain=False)

    def encode_segments(self, segments: list[Segment]) -> list[list[int]]:
        """Token ids of each segment by itself; control text that is not the template's own as plain pieces."""
        texts = [segment.text for segment in segments if not segment.plain]
        ids = iter(self.encode(texts))
        if len(texts) == len(segments):
            return list(ids)
        plain = iter(_encode(self._plain, [segment.text for segment in segments if segment.plain], plain=True))
        return [next(plain if segment.plain else ids) for segment in segments]

    def ends(self, segment: Segment) -> list[int]:
        """Where each token of a segment ends, in characters."""
        backend = self._plain if segment.plain else self.tokenizer.backend_tokenizer
        _reset(backend, segment.plain)
        ends = [end for _, end in backend.encode(segment.text, add_special_tokens=False).offsets]
        return [*accumulate(ends[:-1], max), len(segment.text)] if ends else []

    def text_segments(self, text: str) -> list[Segment]:
        """A plain text behind BOS, if the tokenizer puts one before texts by itself, and before EOS, if it has one.

        What the text spells is meant: people write chats out as text, with their control tokens.
        """
        bos, eos = str(self.tokenizer.bos_token or ""), str(self.tokenizer.eos_token or "")
        before = [Segment(bos, False)] if self.adds_bos and not text.startswith(bos) else []
        behind = [Segment(eos, True)] if eos and not text.endswith(eos) else []
        return [*before, Segment(text, True), *behind]

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts BOS before texts by itself."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    def count_special(self, ids: list[int]) -> int:
        """Number of special tokens among ids."""
        return sum(map(self._special_ids.__contains__, ids))

    def count_written(self, text: str) -> int:
        """Number of special tokens in a text that the template wrote."""
        if len(self._special_counts) > MAX_COUNTS:
            self._special_counts.clear()
        if text not in self._special_counts:
            self._special_counts[text] = self.count_special(self.encode([text])[0])
        return self._special_counts[text]

    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the template's end-of-turn token first, then the tokenizer's eos."""
        ids = self.encode([self.turn_end()])[0] if self.turn_end() else []
        stops = ids if len(ids) == 1 else []
        eos = self.tokenizer.eos_token_id
        return [*stops, *([eos] if eos is not None and eos not in stops else [])]

    def split_markers(self) -> list[str]:
        """Markers of the template that the tokenizer splits into several tokens."""
        return [marker for marker, ids in zip(self.markers, self.encode(self.markers), strict=True) if len(ids) > 1]

    @cached_property
    def tokenizer_hash(self) -> str:
        """Hash of what the tokenizer does with text; its padding and truncation, which change with use, don't count."""
        backend = self.tokenizer.backend_tokenizer
        _reset(backend, plain=False)
        return hashlib.sha256(backend.to_str().encode()).hexdigest()

    @cached_property
    def markers(self) -> list[str]:
        """Markers that the template writes, such as `<|im_start|>` or `[INST]`."""
        question: list[Message] = [{"role": "user", "content": SENTINEL}]
        answered = [*question, {"role": "assistant", "content": SENTINEL}]
        rendered = (self.prompt_text(question) + self.render(answered)).replace(SENTINEL, " ")
        return sorted(set(MARKER.findall(rendered)))

    @cached_property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer reads as special tokens, named (eos, bos, ...) or only added."""
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)} - {""})

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Matches control text: the tokenizer's special tokens and the template's markers."""
        return control_pattern([*self.special_tokens, *self.markers])

    @cached_property
    def can_escape(self) -> frozenset[str]:
        """Control texts that are tokens of their own, so that plain text can be told apart from them."""
        return frozenset(token.content for token in self.tokenizer.added_tokens_decoder.values())

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        control = {*self.special_tokens, *self.markers}
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(number for number, token in added if token.content in control)

    @cached_property
    def _plain(self) -> Tokenizer:
        return plain_tokenizer(self.tokenizer.backend_tokenizer, frozenset([*self.special_tokens, *self.markers]))


def _encode(backend: Tokenizer, texts: list[str], plain: bool) -> list[list[int]]:
    """Token ids of each text by itself."""
    if not texts:
        return []
    _reset(backend, plain)
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _reset(backend: Tokenizer, plain: bool) -> None:
    """Set the state that tokens depend on: others may have used the tokenizer with padding, say.

    A tokenizer can't be changed while another thread encodes with it: so only the first to come changes it.
    """
    with _CHANGES:
        if backend.encode_special_tokens != plain:
            backend.encode_special_tokens = plain
        if backend.padding is not None:
            backend.no_padding()
        if backend.truncation is not None:
            backend.no_truncation()
