"""Messages -> token ids and the spans that are trained: by rendering and character offsets, never by searching ids.

One rule for chats and pairs, training and generation: the rendered text is cut at the borders of the assistant's
answers and each piece is tokenised by itself. So the tokens before an answer are exactly those that the generation
prompt gives, and the tokens of the answer are its own.
"""

import logging
import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from smollit.data.records import BadRow, Conversation, Message, Preference

log = logging.getLogger(__name__)
SENTINEL = "\ue000answer\ue001"  # private-use characters: no data set holds this text
MARKER = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")
TRAINED, CONTEXT = True, False


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
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self.tokenizer = tokenizer
        self.text = text

    def render(self, messages: list[Message], generation_prompt: bool = False) -> str:
        """The text of the messages, with the header of the next answer if `generation_prompt`."""
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.text, tokenize=False, add_generation_prompt=generation_prompt
            )
        except (TemplateError, TypeError) as error:
            raise BadRow("template refuses the row", str(error)) from error

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
        texts, starts = [], set()
        for answer in (pair.chosen, pair.rejected):
            messages = [*pair.prompt, answer]
            text = self.render(messages)
            start, end = self.answer_span(messages, len(pair.prompt), text)
            texts.append(text[start:end])
            starts.add(text[:start])
        if len(starts) != 1:
            raise BadRow("template refuses the row", "the template renders the prompt differently for the two answers")
        return PairSegments(starts.pop(), *texts)

    def answer_span(self, messages: list[Message], index: int, text: str) -> tuple[int, int]:
        """Characters [start, end) of an answer: from behind the generation prompt through the end-of-turn marker.

        Raises:
            BadRow: If the template renders the turn in another way than the prompt and the answer one after the other.
        """
        before = self._text_before(messages, index)
        through = self.render(messages[: index + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise BadRow(
                "template refuses the row", f"the template changes the turns before or after messages[{index}]"
            )
        body = messages[index]["content"].strip()
        found = through.find(body, len(before))
        if found < 0:
            raise BadRow("template refuses the row", f"the template changes the text of messages[{index}]")
        # The newline behind an end marker is the template's, not the answer's: never trained.
        tail = through[found + len(body) :]
        end = found + len(body) + len(tail.rstrip())
        return len(before), end

    def _text_before(self, messages: list[Message], index: int) -> str:
        if index > 0:
            return self.render(messages[:index], generation_prompt=True)
        # A chat that starts with an answer: there is nothing to render a generation prompt behind.
        return self.render([{**messages[0], "content": SENTINEL}]).partition(SENTINEL)[0]

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
        roles = [{"role": role, "content": SENTINEL} for role in ("user", "assistant")]
        rendered = self.render(roles, generation_prompt=True).replace(SENTINEL, " ")
        markers = sorted(set(MARKER.findall(rendered)))
        return [marker for marker, ids in zip(markers, self.encode(markers), strict=True) if len(ids) > 1]

    def control_texts(self, messages: list[Message]) -> list[str]:
        """Special tokens of the tokenizer that stand as text in the messages."""
        special = [token for token in self.tokenizer.all_special_tokens if token]
        return [token for message in messages for token in special if token in message["content"]]


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
        return ChatTemplate(tokenizer, tokenizer.chat_template)
    if choice == "auto" and not allow_default:
        raise ValueError(
            "the tokenizer has no chat template: start from a folder that an SFT run exported (it has one),"
            " or set `data.chat_template` to chatml or a Jinja file"
        )
    if choice in ("auto", "chatml", "article"):
        name = "chatml" if choice == "auto" else choice
        if choice == "auto":
            log.info("the tokenizer has no chat template: ChatML is used")
        return ChatTemplate(tokenizer, (files("smollit.data") / "templates" / f"{name}.jinja").read_text())
    if not Path(choice).is_file():
        raise ValueError(
            f"`data.chat_template` must be auto, chatml, article or a Jinja file, and {choice!r} is no file"
        )
    return ChatTemplate(tokenizer, Path(choice).read_text(encoding="utf-8"))
