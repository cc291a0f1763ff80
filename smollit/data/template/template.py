"""ChatTemplate: conversation -> rendered text -> loss spans -> segments -> token ids.

The rendered text is split where a loss span starts and ends, and each segment is tokenized separately. So the tokens
before a response are exactly those that the generation prompt gives at inference, and no token spans both. Chats and
pairs, training and generation follow this one rule.
"""

from collections.abc import Sequence
from datetime import date
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from smollit.data.formats.types import Conversation, Message, Preference, Variables
from smollit.data.template.control import ControlText
from smollit.data.template.loss_spans import Headers, LossSpan, LossSpanFinder, SpanSource
from smollit.data.template.parts import TurnPart, split_turns
from smollit.data.template.probe import SystemTurn, change_default_system, choose_span_source, find_default_system
from smollit.data.template.rendering.as_read import as_read
from smollit.data.template.rendering.jinja import read_source, with_defaults
from smollit.data.template.rendering.renderer import RenderedChat, Renderer, in_parts
from smollit.data.template.rendering.shapes import Shape
from smollit.data.template.tokenize import Segment, SegmentedRow, SegmentTokenizer, join_pair
from smollit.data.template.train_on import TrainOn, join_continued, through_last_loss
from smollit.data.template.unprinted import find_unprinted


class ChatTemplate:
    """Renders chats, finds the characters whose tokens count in the loss, and tokenizes.

    Args:
        tokenizer: The tokenizer, whose special tokens the template may use.
        source: The Jinja template.
        name: Name of the template in errors.
        span_source: What shows where an assistant turn starts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source: str,
        *,
        name: str = "the chat template",
        span_source: SpanSource = "prefix",
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.name = name
        self.span_source = span_source
        self._renderer = Renderer(tokenizer, source, name)
        self._finder = LossSpanFinder(self._renderer, span_source)
        self.control = ControlText(self._renderer)
        self._segment_tokenizer = SegmentTokenizer(tokenizer, self.control)

    def render(
        self, messages: list[Message], *, variables: Variables | None = None, like: RenderedChat | None = None
    ) -> RenderedChat:
        """A chat as text, with the spans of its contents.

        Args:
            messages: The messages. An assistant turn that follows another continues it.
            variables: What the template gets besides: the row's tools and switches.
            like: A rendered chat that differs in its last message only: its spans are reused.

        Raises:
            BadRow: If the template fails on the messages.
        """
        joined, given = join_continued(messages)
        renderer = self._renderer.bind(variables or {})
        joined = as_read(renderer, joined, given)
        chat = renderer.render(joined, with_blocks=self.span_source == "markers", like=like)
        return chat._replace(given=given) if given else chat

    def loss_spans(self, chat: RenderedChat, train_on: TrainOn = "assistant") -> list[LossSpan]:
        """The characters of a rendered chat that count in the loss, of one message each.

        Args:
            chat: The rendered chat.
            train_on: `assistant` (all its turns), `last` (its last turn), or roles; a message's own `train` overrides.

        Raises:
            BadRow: If no message counts in the loss, or a span can't be found or verified.
        """
        return [LossSpan(*part[:3]) for part in self._parts(chat, train_on) if part.in_loss]

    def _parts(self, chat: RenderedChat, train_on: TrainOn) -> list[TurnPart]:
        """The messages with loss, in parts if `train_on` names parts."""
        finder = self._finder_of(chat)
        spans = finder.find(chat, finder.wanted(chat.messages, train_on))
        return split_turns(finder.renderer, chat, spans, train_on)

    def segment_chat(
        self, conversation: Conversation, train_on: TrainOn = "assistant", *, has_control: bool = True
    ) -> SegmentedRow:
        """A chat, rendered and split at its loss spans.

        Args:
            conversation: The chat.
            train_on: Which messages count in the loss.
            has_control: Whether to look for control text in the messages: false if they are known to have none.

        Raises:
            BadRow: If the template can't render it, no message counts in the loss, or a span can't be verified.
        """
        messages = through_last_loss(conversation.messages, train_on)
        chat = self.render(messages, variables=conversation.variables)
        return self._segment_tokenizer.cut(chat, self._parts(chat, train_on), has_control=has_control)

    def segment_pair(self, pair: Preference, *, has_control: bool = True) -> SegmentedRow:
        """The chats with the chosen and with the rejected response, of which only the responses count in the loss.

        Args:
            pair: The pair.
            has_control: As for `segment_chat`.

        Raises:
            BadRow: As `segment_chat`.
        """
        chosen = self.render([*pair.prompt, pair.chosen], variables=pair.variables)
        rejected = self.render([*pair.prompt, pair.rejected], variables=pair.variables, like=chosen)
        last, verified = [len(chosen.messages) - 1], Headers()
        rows = []
        for chat in (chosen, rejected):
            spans = self._finder_of(chat).find(chat, last, verified)
            rows.append(self._segment_tokenizer.cut(chat, [TurnPart(*span) for span in spans], has_control=has_control))
        pair_row = join_pair(*rows)
        return pair_row or self._renderer.refuse("renders another prompt before `rejected` than before `chosen`")

    def segment_text(self, text: str) -> SegmentedRow:
        """A plain text between BOS and EOS, where the tokenizer has them."""
        return self._segment_tokenizer.segment_text(text)

    def unprinted(self, row: SegmentedRow) -> tuple[str, ...]:
        """Names of what the messages and variables of a row say and the template does not print."""
        found = [find_unprinted(self._renderer.bind(chat.variables), chat) for chat in row.chats]
        return tuple(dict.fromkeys(name for names in found for name in names))

    def _finder_of(self, chat: RenderedChat) -> LossSpanFinder:
        """The finder of loss spans that renders with the variables of the chat."""
        return LossSpanFinder(self._renderer.bind(chat.variables), self.span_source) if chat.variables else self._finder

    def tokenize(self, segments: Sequence[Segment]) -> list[list[int]]:
        """Token ids of each segment separately; special tokens that an escaped segment spells are plain text."""
        return self._segment_tokenizer.tokenize(segments)

    def verify_special_tokens(self, row: SegmentedRow, ids: list[list[int]]) -> None:
        """Refuse a row unless it has exactly the special tokens that the template writes.

        Raises:
            BadRow: If a message's text and the template's make a special token together.
        """
        self._segment_tokenizer.verify_special_tokens(row, ids)

    def prompt_text(self, messages: list[Message], variables: Variables | None = None) -> str:
        """The model's input at inference: the messages and the header of the next assistant turn.

        Args:
            messages: The messages.
            variables: What the template gets besides, as tools.
        """
        renderer = self._renderer.bind(variables or {})
        return renderer.prompt_text(as_read(renderer, messages, {}))

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, tokenized separately. The tokenizer adds no special tokens: the template has them."""
        return self._segment_tokenizer.encode(texts)

    def token_ends(self, segment: Segment) -> list[int]:
        """Where each token of a segment ends, in characters."""
        return self._segment_tokenizer.token_ends(segment)

    def shape(self, role: str) -> Shape | None:
        """How messages of a role are printed; None if probes can't show it."""
        return self._renderer.shape(role)

    def turn_end(self) -> str:
        """The marker that ends an assistant turn, such as `<|im_end|>`; empty if the template has none."""
        return self._renderer.turn_end()

    @property
    def generation_prompt(self) -> str:
        """The header of the next assistant turn."""
        return self._renderer.generation_prompt

    def as_rendered(self, messages: list[Message]) -> list[Message]:
        """The messages as the template takes them: contents as text, or as a list of one part."""
        return in_parts(messages) if self._renderer.wants_parts else messages

    def stop_ids(self) -> list[int]:
        """Tokens that end a response: the template's end-of-turn token first, then the tokenizer's eos."""
        ids = self.encode([self.turn_end()])[0] if self.turn_end() else []
        stops = ids if len(ids) == 1 else []
        eos = self.tokenizer.eos_token_id
        return [*stops, *([eos] if eos is not None and eos not in stops else [])]

    def split_markers(self) -> list[str]:
        """Markers of the template that the tokenizer splits into several tokens."""
        markers = self.control.markers
        return [marker for marker, ids in zip(markers, self.encode(markers), strict=True) if len(ids) > 1]

    @cached_property
    def default_system(self) -> SystemTurn | None:
        """The system turn that the template adds to chats without one; None if it adds none."""
        return find_default_system(self._renderer)

    def default_system_text(self) -> str:
        """The system text that the template adds to chats without one; empty if it adds none."""
        return self.default_system.text if self.default_system else ""

    @property
    def tokenizer_hash(self) -> str:
        """Hash of everything in the tokenizer that changes tokens."""
        return self._segment_tokenizer.hash

    @property
    def cache_text(self) -> str:
        """The dependencies of rendered texts: the source, and today's date if the template prints it."""
        return self.source + (date.today().isoformat() if "strftime_now" in self.source else "")


def load_template(
    tokenizer: PreTrainedTokenizerBase,
    choice: str,
    *,
    allow_default: bool = True,
    default_system: str = "keep",
    switches: Variables | None = None,
) -> ChatTemplate:
    """The template that `choice` names, once probes show how to find loss spans in it.

    Args:
        tokenizer: The tokenizer; `auto` uses its own template.
        choice: `auto` (the tokenizer's own, else ChatML), `chatml`, `article`, or the path of a Jinja file.
        allow_default: Whether `auto` may fall back on ChatML.
        default_system: Treatment of the system text that the template adds to chats without one: `keep`, `drop`,
            or a text that replaces it.
        switches: Variables of the template, such as `enable_thinking`, that become its defaults.

    Raises:
        ValueError: If the file is missing, the tokenizer has no template and none may be assumed, or the template
            is unsound.
    """
    source, name = read_source(tokenizer, choice, allow_default)
    source = with_defaults(source, switches or {}, tokenizer.special_tokens_map)
    renderer = Renderer(tokenizer, source, name)
    span_source = choose_span_source(renderer)
    if default_system != "keep":
        source = change_default_system(renderer, default_system)
    return ChatTemplate(tokenizer, source, name=name, span_source=span_source)
