"""Token ids of segments as they are inside a text, for tokenizers that read the start of a text in another way.

Tokenizers of SentencePiece's kind (Llama 2, Mistral, Phi-3) put a space before a text, some also after each special
token, and special tokens of some take the whitespace after them. So what stands before a segment decides on its tokens.
"""

import json
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from smollit.data.template.control import ControlText

TEXT = ""  # what a segment follows where no added token stands before it
_CHANGES = Lock()


class Tokens(NamedTuple):
    """Token ids, and where each token ends, in characters."""

    ids: list[int]
    ends: list[int]


class InText:
    """Tokenizes segments by what they follow.

    Args:
        tokenizer: The tokenizer; it must be a fast one.
        control: The control text that escaped segments spell.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlText) -> None:
        self.tokenizer = tokenizer
        self.control = control
        self.added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._ids = frozenset(tokenizer.added_tokens_decoder)
        self._starts: dict[str, bool] = {}

    @cached_property
    def matters(self) -> bool:
        """Whether the tokens of a segment depend on what it follows."""
        return self._bare is not None or any(token.rstrip for token in self.added.values())

    def end_of(self, text: str) -> str:
        """The added token that a text ends with, perhaps with whitespace that it takes; `TEXT` if there is none."""
        stripped = text.rstrip()
        if not stripped.endswith(tuple(self.added)):
            return TEXT
        found = (name for name, token in self.added.items() if (stripped if token.rstrip else text).endswith(name))
        return max(found, key=len, default=TEXT)

    def ids(self, texts: list[str], follows: str | None = None, *, escape: bool = False) -> list[list[int]]:
        """Token ids of each text, as `tokens` finds them."""
        if follows is not None:
            return [tokens.ids for tokens in self.tokens(texts, follows, escape=escape)]
        backend = self._backend_of(escape=escape)
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def tokens(self, texts: list[str], follows: str | None = None, *, escape: bool = False) -> list[Tokens]:
        """The tokens of each text.

        Args:
            texts: Texts of segments.
            follows: What stands before each of them: an added token, or `TEXT`; None at the start of a text.
            escape: Whether special tokens are plain text.
        """
        takes_space = follows in self.added and self.added[follows].rstrip
        starts = [len(text) - len(text.lstrip()) if takes_space else 0 for text in texts]
        texts = [text[start:] for text, start in zip(texts, starts, strict=True)]
        whole = self._backend_of(escape=escape).encode_batch(texts, add_special_tokens=False)
        found = [(encoding.ids, [end for _, end in encoding.offsets]) for encoding in whole]
        if follows is not None and not self._is_start(follows):
            found = self._without_prefix(texts, whole, escape=escape)
        return [Tokens(ids, [start + end for end in ends]) for start, (ids, ends) in zip(starts, found, strict=True)]

    def _without_prefix(
        self, texts: list[str], whole: list[Encoding], *, escape: bool
    ) -> list[tuple[list[int], list[int]]]:
        """Ids and ends without the space before a text: up to the first added token, those of the bare tokenizer."""
        bare = self._bare_escaping if escape else self._bare
        assert bare is not None, "the tokenizer puts a space before texts"
        reset(bare, escape=escape)
        cuts = [
            next((number for number, token in enumerate(one.ids) if token in self._ids), len(one.ids)) for one in whole
        ]
        ends = [
            one.offsets[cut][0] if cut < len(one.ids) else len(text)
            for text, one, cut in zip(texts, whole, cuts, strict=True)
        ]
        heads = bare.encode_batch([text[:end] for text, end in zip(texts, ends, strict=True)], add_special_tokens=False)
        return [
            (head.ids + one.ids[cut:], [end for _, end in (*head.offsets, *one.offsets[cut:])])
            for head, one, cut in zip(heads, whole, cuts, strict=True)
        ]

    def _is_start(self, follows: str) -> bool:
        """Whether what follows an added token is read as the start of a text is."""
        if self._bare is None or follows == TEXT:
            return self._bare is None
        if follows not in self._starts:
            alone, after = self.ids(["a", f"{follows}a"])
            self._starts[follows] = after[1:] == alone
        return self._starts[follows]

    def _backend_of(self, *, escape: bool) -> Tokenizer:
        backend = self.control.escaping_tokenizer if escape else self.tokenizer.backend_tokenizer
        reset(backend, escape=escape)
        return backend

    @cached_property
    def _bare(self) -> Tokenizer | None:
        return without_prefix(self.tokenizer.backend_tokenizer)

    @cached_property
    def _bare_escaping(self) -> Tokenizer | None:
        return without_prefix(self.control.escaping_tokenizer)


def without_prefix(backend: Tokenizer) -> Tokenizer | None:
    """A copy of a tokenizer that puts no space before a text; None if it puts none there itself."""
    parts = json.loads(backend.to_str())
    changed = {name: _bare_step(parts[name]) for name in ("normalizer", "pre_tokenizer")}
    if parts == parts | changed:
        return None
    copy = Tokenizer.from_str(json.dumps(parts | changed))
    reset(copy, escape=False)
    return copy


def _bare_step(step: Any) -> Any:
    """A normalizer or pre-tokenizer of tokenizer.json without the space before a text; None if nothing is left."""
    match step:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return step | {"prepend_scheme": "never"}
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return step | {"add_prefix_space": False}
        case {"type": "Sequence"}:
            name = "normalizers" if "normalizers" in step else "pretokenizers"
            return step | {name: [bare for one in step[name] if (bare := _bare_step(one)) is not None]}
    return step


def reset(backend: Tokenizer, *, escape: bool) -> None:
    """Set the state that tokens depend on, which other code may have changed: padding, for example.

    A tokenizer can't be changed while another thread encodes with it, so only the first thread changes it.
    """
    with _CHANGES:
        if backend.encode_special_tokens != escape:
            backend.encode_special_tokens = escape
        if backend.padding is not None:
            backend.no_padding()
        if backend.truncation is not None:
            backend.no_truncation()
