"""Messages -> segments of rendered text and their token ids, with what of it is trained.

One rule for chats and pairs, training and generation: the rendered text is cut at the borders of what is trained and
each segment is tokenised by itself. So the tokens before an answer are exactly those that the generation prompt gives,
and the tokens of the answer are its own.
"""

from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Message, Preference
from smollit.data.template.control import check_escapable, control_spans, find_control
from smollit.data.template.loss_spans import Chat, Proven, Way, lay_out, lay_out_like, trained_spans
from smollit.data.template.probe import choose_way
from smollit.data.template.renderer import Renderer, Span
from smollit.data.template.system import change_default_system, default_system
from smollit.data.template.tokenize import Segment, TokenRenderer

__all__ = ["ChatTemplate", "Rendered", "Segment", "load_template"]
TRAINED, CONTEXT = True, False
TrainOn = str | tuple[str, ...]


class Rendered(NamedTuple):
    """A rendered chat, cut.

    Args:
        chat: What was rendered, and where the contents stand.
        segments: Its text up to the end of what is trained last.
        special: Number of special tokens that the template writes into these segments; None if not known.
    """

    chat: Chat
    segments: list[Segment]
    special: int | None

    def context(self) -> list[Segment]:
        """The segments that are not trained: of a pair, its prompt."""
        return [segment for segment in self.segments if not segment.trained]

    def trained(self) -> list[Segment]:
        """The segments that are trained: of a pair, its answer."""
        return [segment for segment in self.segments if segment.trained]


class ChatTemplate(TokenRenderer):
    """Renders messages, knows which characters are to be trained, and tokenises.

    Args:
        tokenizer: Whose special tokens the template may use.
        text: The Jinja template.
        name: What errors call the template.
        way: How answers are found.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, text: str, name: str = "the chat template", way: Way = "prefix"
    ) -> None:
        super().__init__(tokenizer, text, name)
        self.way = way

    def segments(
        self, conversation: Conversation, train_on: TrainOn = "assistant", has_control: bool = True
    ) -> Rendered:
        """The rendered chat up to the end of its last trained message, cut at the borders of what is trained.

        Args:
            conversation: What to render.
            train_on: What is trained.
            has_control: Whether control text must be looked for in the messages: false if there is known to be none.

        Raises:
            BadRow: If the template can't render it, nothing is trained, or what is trained can't be proven.
        """
        messages, given = join_continued(conversation.messages)
        wanted = wanted_messages(messages, train_on)
        if not wanted:
            raise BadRow(DropReason.NO_LOSS_TOKENS, f"no message is to be trained (`data.train_on` is {train_on!r})")
        return self._cut(lay_out(self, messages, self.way), wanted, given, Proven({}), has_control)

    def pair_segments(self, pair: Preference, has_control: bool = True) -> tuple[Rendered, Rendered]:
        """The chats with the chosen and with the rejected answer, of which only the answers are trained.

        Args:
            pair: What to render.
            has_control: As for `segments`.

        Raises:
            BadRow: As `segments`.
        """
        chosen, given = join_continued([*pair.prompt, pair.chosen])
        rejected, _ = join_continued([*pair.prompt, pair.rejected])
        wanted, proven = [len(chosen) - 1], Proven({})
        chat = lay_out(self, chosen, self.way)
        other = lay_out_like(self, chat, rejected[-1], self.way)
        first, second = (self._cut(each, wanted, given, proven, has_control) for each in (chat, other))
        if first.context() != second.context():
            self.refuse("renders another prompt before `rejected` than before `chosen`")
        return first, second

    def _cut(self, chat: Chat, wanted: list[int], given: dict[int, int], proven: Proven, has_control: bool) -> Rendered:
        spans = trained_spans(self, chat, wanted, self.way, proven)
        places = self._control_places(chat) if has_control or given else []  # joined turns may make control text
        segments, cursor = [], 0
        for index, (start, end) in zip(wanted, spans, strict=True):
            start = self._behind(chat, index, given[index]) if index in given else start
            assert cursor <= start <= end, (self.name, cursor, start, end)
            segments += cut_at(chat.text, (cursor, start), CONTEXT, index, places)
            segments += cut_at(chat.text, (start, end), TRAINED, index, places)
            cursor = end
        return Rendered(chat, segments, self._special_expected(chat, cursor))

    def _control_places(self, chat: Chat) -> list[Span]:
        """Where control text stands in the rendered chat.

        Raises:
            BadRow: If it can't be told apart from the template's own.
        """
        found = find_control(self.control, chat.messages)
        places = None if chat.contents is None else control_spans(self.control, chat.text, chat.contents)
        if found:
            check_escapable(found, places, self.can_escape)
        return places or []

    def _special_expected(self, chat: Chat, end: int) -> int | None:
        """Number of special tokens that the template writes between the contents, up to character `end`."""
        if chat.contents is None:
            return None
        total, cursor = 0, 0
        for start, stop in chat.contents:
            if start >= end:
                break
            total += self.count_written(chat.text[cursor:start])
            cursor = stop
        return total + self.count_written(chat.text[cursor:end])

    def _behind(self, chat: Chat, index: int, given: int) -> int:
        """Where an answer goes on behind its first `given` characters."""
        if chat.contents is None:
            self.refuse(f"changes the text of messages[{index}], which continues a given text")
        start, end = chat.contents[index]
        content = chat.messages[index]["content"]
        trimmed = 0 if content.startswith(chat.text[start:end]) else len(content) - len(content.lstrip())
        return start + max(0, given - trimmed)

    def default_system_text(self) -> str:
        """The system text that the template adds to chats without one; empty if it adds none."""
        block = default_system(self)
        return block.text if block else ""

    @property
    def cache_text(self) -> str:
        """What renders depend on: the source, and today's date if the template prints it."""
        return self.text + (date.today().isoformat() if self.prints_date else "")

    @property
    def prints_date(self) -> bool:
        """Whether another day gives other text."""
        return "strftime_now" in self.text

    def notes(self) -> list[str]:
        """What users should be told of the template once per run."""
        how = "its generation markers" if self.way == "markers" else "rendering the turns before them"
        lines = [f"{self.name}: answers are found by {how}, and proven on every row"]
        if self.default_system_text():
            lines.append(
                f"{self.name} adds the system text {self.default_system_text()!r} to chats without one:"
                " `data.default_system` can drop or replace it"
            )
        if self.prints_date:
            lines.append(f"{self.name} prints today's date: tokens are made anew each day")
        return lines


def wanted_messages(messages: list[Message], train_on: TrainOn) -> list[int]:
    """Indices of the messages to train: `assistant`, the `last` assistant turn, or roles; a message's own `train` wins.

    Two assistant turns in a row are one turn, so `messages` must be joined.
    """
    roles = {"assistant"} if train_on == "last" else {train_on} if isinstance(train_on, str) else set(train_on)
    found = [index for index, message in enumerate(messages) if message["role"] in roles]
    found = found[-1:] if train_on == "last" else found
    return [index for index, message in enumerate(messages) if message.get("train", index in found)]


def join_continued(messages: list[Message]) -> tuple[list[Message], dict[int, int]]:
    """Assistant turns that continue the one before as one message, and how many characters of it were given."""
    joined: list[Message] = []
    given: dict[int, int] = {}
    for message in messages:
        if not joined or message["role"] != "assistant" or joined[-1]["role"] != "assistant":
            joined.append(message)
            continue
        before = {key: value for key, value in joined[-1].items() if key != "train"}
        given[len(joined) - 1] = len(before["content"])
        joined[-1] = {**before, **message, "content": before["content"] + message["content"]}
    return joined, given


def cut_at(text: str, span: Span, trained: bool, message: int, places: list[Span]) -> list[Segment]:
    """The characters [start, end) as one segment, or as several round the places of control text."""
    segments, (cursor, end) = [], span
    for start, stop in places:
        if cursor <= start and stop <= end:
            segments += [
                Segment(text[cursor:start], trained, message),
                Segment(text[start:stop], trained, message, True),
            ]
            cursor = stop
    segments.append(Segment(text[cursor:end], trained, message))
    return [segment for segment in segments if segment.text]


def load_template(
    tokenizer: PreTrainedTokenizerBase, choice: str, allow_default: bool = True, default_system: str = "keep"
) -> ChatTemplate:
    """The template that `choice` names, once it is known how to find answers in it.

    Args:
        tokenizer: Whose own template `auto` takes.
        choice: `auto` (the tokenizer's own, else ChatML), `chatml`, `article`, or the path of a Jinja file.
        allow_default: Whether `auto` may fall back on ChatML.
        default_system: Of the system text that the template adds to chats without one: `keep`, `drop`, or another
            text in its place.

    Raises:
        ValueError: If the file is missing, the tokenizer has no template and none may be assumed, or the template
            is unsound.
    """
    text, name = _source(tokenizer, choice, allow_default)
    renderer = Renderer(tokenizer, text, name)
    way = choose_way(renderer)
    if default_system == "keep":
        return ChatTemplate(tokenizer, text, name, way)
    return ChatTemplate(tokenizer, change_default_system(renderer, default_system), name, way)


def _source(tokenizer: PreTrainedTokenizerBase, choice: str, allow_default: bool) -> tuple[str, str]:
    """The template's text, and what errors call it."""
    if choice == "auto" and tokenizer.chat_template:
        return tokenizer.get_chat_template(), "the tokenizer's chat template"
    if choice == "auto" and not allow_default:
        raise ValueError(
            "the tokenizer has no chat template: start from a folder that an SFT run exported (it has one),"
            " or set `data.chat_template` to chatml or a Jinja file"
        )
    if choice in ("auto", "chatml", "article"):
        name = "chatml" if choice == "auto" else choice
        text = (files("smollit.data") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        return text, f"the chat template {name}"
    if not Path(choice).is_file():
        raise ValueError(
            f"`data.chat_template` must be auto, chatml, article or a Jinja file, and {choice!r} is no file"
        )
    return Path(choice).read_text(encoding="utf-8"), f"the chat template {choice}"
