"""Messages -> token ids and the spans that are trained: by rendering and character offsets, never by searching ids.

One rule for chats and pairs, training and generation: the rendered text is cut at the borders of the assistant's
answers and each piece is tokenised by itself. So the tokens before an answer are exactly those that the generation
prompt gives, and the tokens of the answer are its own.
"""

import hashlib
import json
import re
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, NoReturn

from transformers import PreTrainedTokenizerBase

from smollit.data.records import BadRow, Conversation, Message, Preference

SENTINEL = "\ue000answer\ue001"  # private-use characters: no data set holds this text
MARKER = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")
TRAINED, CONTEXT = True, False
REFUSED = "template refuses the row"  # cause of rows that the template can't render as a chat that goes on and on


class Segment(NamedTuple):
    """A piece of rendered text and whether its tokens are trained."""

    text: str
    trained: bool


class PairSegments(NamedTuple):
    """Rendered prompt, up to the answer's first character, and the two answers with their end token."""

    prompt: str
    chosen: str
    rejected: str


class ChatTemplate:
    """Renders messages and knows which characters are the assistant's.

    Args:
        tokenizer: Whose special tokens the template may use.
        text: The Jinja template.
        name: What errors call the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, name: str = "the chat template") -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.name = name

    def render(self, messages: list[Message], generation_prompt: bool = False) -> str:
        """The text of the messages, with the header of the next answer if `generation_prompt`."""
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.text, tokenize=False, add_generation_prompt=generation_prompt
            )
        except Exception as error:  # a template may fail in any way that Jinja and Python know
            raise BadRow(REFUSED, f"{self.name} fails with {type(error).__name__}: {error}") from error
        assert isinstance(text, str)
        return text

    def segments(self, conversation: Conversation) -> list[Segment]:
        """The rendered chat up to its last answer's end, cut at the borders of the answers."""
        messages = conversation.messages
        text = self.render(messages)
        segments, cursor = [], 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start, end = self.answer_span(messages, index, text)
            segments += [Segment(text[cursor:start], CONTEXT), Segment(text[start:end], TRAINED)]
            cursor = end
        return segments

    def pair_segments(self, pair: Preference) -> PairSegments:
        """The prompt once, and both answers; each is rendered behind the prompt, so no header or system text joins."""
        before = self.prompt_text(pair.prompt)
        answers = []
        for answer in (pair.chosen, pair.rejected):
            messages = [*pair.prompt, answer]
            text = self.render(messages)
            start, end = self._span(messages, len(pair.prompt), before, text)
            answers.append(text[start:end])
        return PairSegments(before, *answers)

    def answer_span(self, messages: list[Message], index: int, text: str) -> tuple[int, int]:
        """Characters [start, end) of an answer: from behind the generation prompt through the end-of-turn marker.

        Raises:
            BadRow: If the template renders the turn in another way than the prompt and the answer one after the other.
        """
        through = text if index == len(messages) - 1 else self.render(messages[: index + 1])
        if not text.startswith(through):
            self._refuse(f"renders the turns up to messages[{index}] in another way once more turns follow")
        return self._span(messages, index, self._text_before(messages, index), through)

    def _span(self, messages: list[Message], index: int, before: str, through: str) -> tuple[int, int]:
        """The span of the last answer of `through`, given the text that stands before it at inference."""
        where = f"messages[{index}]"
        if not through.startswith(before):
            self._refuse(f"puts something else before {where} than its generation prompt gives")
        turn, content = through[len(before) :], messages[index]["content"]
        body = content if content in turn else content.strip()  # a template may trim
        start = turn.find(body)
        if start < 0:
            self._refuse(f"changes the text of {where}")
        if index > 0 and not self.has_generation_prompt and not turn.lstrip().startswith(body.lstrip()):
            header = turn[: turn.rfind(body)].strip()
            self._refuse(f"puts {header!r} before {where}, but has no generation prompt (`add_generation_prompt`)")
        if self.turn_end() and self.turn_end() in content:
            raise BadRow("end marker in an answer", f"{where}.content holds {self.turn_end()!r}, which ends the turn")
        # The newline behind an end marker is the template's, not the answer's: never trained.
        end = start + len(body)
        end += len(turn[end:].rstrip())
        return len(before), len(before) + end

    def _text_before(self, messages: list[Message], index: int) -> str:
        if index > 0:
            return self.prompt_text(messages[:index])
        # A chat that starts with an answer: there is nothing to render a generation prompt behind.
        return self.render([{**messages[0], "content": SENTINEL}]).partition(SENTINEL)[0]

    def _refuse(self, what: str) -> NoReturn:
        raise BadRow(REFUSED, f"{self.name} {what}")

    @cached_property
    def has_generation_prompt(self) -> bool:
        """Whether the template can give the header of the next answer."""
        question: list[Message] = [{"role": "user", "content": SENTINEL}]
        return self.prompt_text(question) != self.render(question)

    @cached_property
    def tokenizer_hash(self) -> str:
        """Hash of what the tokenizer does with text; its padding and truncation, which change with use, don't count."""
        parts = json.loads(self.tokenizer.backend_tokenizer.to_str())
        parts |= {"padding": None, "truncation": None}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def prompt_text(self, messages: list[Message]) -> str:
        """What the model is given at inference: the messages and the header of the next answer."""
        return self.render(messages, generation_prompt=True)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text by itself, without special tokens of the tokenizer's own: the template has them."""
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    def turn_end(self) -> str:
        """The marker that ends an answer, such as `<|im_end|>`; empty if the template has none."""
        return self._turn_end

    @cached_property
    def _turn_end(self) -> str:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": SENTINEL}]
        return self.render(messages).rpartition(SENTINEL)[2].strip()

    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the template's end-of-turn token first, then the tokenizer's eos."""
        ids = self.encode([self.turn_end()])[0] if self.turn_end() else []
        stops = ids if len(ids) == 1 else []
        eos = self.tokenizer.eos_token_id
        return [*stops, *([eos] if eos is not None and eos not in stops else [])]

    def split_markers(self) -> list[str]:
        """Markers of the template that the tokenizer splits into several tokens."""
        question: list[Message] = [{"role": "user", "content": SENTINEL}]
        answered = [*question, {"role": "assistant", "content": SENTINEL}]
        rendered = (self.prompt_text(question) + self.render(answered)).replace(SENTINEL, " ")
        markers = sorted(set(MARKER.findall(rendered)))
        return [marker for marker, ids in zip(markers, self.encode(markers), strict=True) if len(ids) > 1]

    @cached_property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer reads as special tokens, named (eos, bos, ...) or only added."""
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)} - {""})

    def control_texts(self, messages: list[Message]) -> list[str]:
        """Special tokens of the tokenizer that stand as text in the messages."""
        return [token for message in messages for token in self.special_tokens if token in message["content"]]


def load_template(tokenizer: PreTrainedTokenizerBase, choice: str, allow_default: bool = True) -> ChatTemplate:
    """The template that `choice` names.

    Args:
        tokenizer: Whose own template `auto` takes.
        choice: `auto` (the tokenizer's own, else ChatML), `chatml`, `article`, or the path of a Jinja file.
        allow_default: Whether `auto` may fall back on ChatML.

    Raises:
        ValueError: If the file is missing, or the tokenizer has no template and none may be assumed.
    """
    if choice == "auto" and tokenizer.chat_template:
        return _checked(ChatTemplate(tokenizer, tokenizer.get_chat_template(), "the tokenizer's chat template"))
    if choice == "auto" and not allow_default:
        raise ValueError(
            "the tokenizer has no chat template: start from a folder that an SFT run exported (it has one),"
            " or set `data.chat_template` to chatml or a Jinja file"
        )
    if choice in ("auto", "chatml", "article"):
        name = "chatml" if choice == "auto" else choice
        text = (files("smollit.data") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        return ChatTemplate(tokenizer, text, f"the chat template {name}")
    if not Path(choice).is_file():
        raise ValueError(
            f"`data.chat_template` must be auto, chatml, article or a Jinja file, and {choice!r} is no file"
        )
    return _checked(ChatTemplate(tokenizer, Path(choice).read_text(encoding="utf-8"), f"the chat template {choice}"))


def _checked(template: ChatTemplate) -> ChatTemplate:
    """The template, once it has rendered the shortest of chats."""
    try:
        template.split_markers()
    except BadRow as bad:
        raise ValueError(f"`data.chat_template`: {bad.detail}. Mend it, or set it to chatml or another file") from bad
    return template
