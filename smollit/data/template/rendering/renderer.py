"""Renderer: messages -> text by a chat template, with the span of each message's content in it.

Contents are never searched for in the text: marks.py shows where they are.
"""

from functools import cached_property
from itertools import chain
from typing import NamedTuple, NoReturn

from transformers import PreTrainedTokenizerBase

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message, Variables
from smollit.data.template.rendering.jinja import Span, render_text, render_with_blocks
from smollit.data.template.rendering.marks import MARKER, Skeleton, common_length, find_skeleton, spans_between
from smollit.data.template.rendering.shapes import SENTINEL, Shape, first_marker, probes, try_shape

MAX_SKELETONS = 10_000


class RenderedChat(NamedTuple):
    """A chat as text.

    Args:
        messages: The messages; an assistant turn and the turn that continues it are joined to one.
        text: The rendered text.
        contents: The span of each message's content; None if the template does more than print contents.
        blocks: The spans of its `{% generation %}` blocks.
        given: By index of a joined message, the number of its characters that belong to the first of the turns.
        variables: What the template got besides the messages.
    """

    messages: list[Message]
    text: str
    contents: list[Span] | None
    blocks: list[Span]
    given: dict[int, int]
    variables: Variables


class Renderer:
    """A chat template as a function from messages to text.

    Args:
        tokenizer: The tokenizer whose special tokens the template may use.
        source: The Jinja template.
        name: Name of the template in errors.
        variables: What the template gets besides messages and special tokens: a row's tools and switches.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, source: str, name: str, variables: Variables | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.name = name
        self.variables = variables or {}
        self._bound: Renderer | None = None
        self._skeletons: dict[tuple[str, ...], Skeleton] = {}  # by the roles of a chat's messages
        self.shapes: dict[str, Shape | None] = {}

    def bind(self, variables: Variables) -> "Renderer":
        """The same template with the variables of a row. The last one is kept, since rows share their tools."""
        if not variables:
            return self
        if self._bound is None or self._bound.variables != variables:
            self._bound = Renderer(self.tokenizer, self.source, self.name, variables)
            self._bound.shapes = self.shapes  # verified on each row, and so only a guess
            self._bound.wants_parts = self.wants_parts
        return self._bound

    def render(
        self, messages: list[Message], *, with_blocks: bool = False, like: RenderedChat | None = None
    ) -> RenderedChat:
        """A chat as text, with the spans of its contents.

        Args:
            messages: The messages.
            with_blocks: Whether to find the spans of generation blocks too.
            like: A rendered chat that differs in its last message only: its spans are reused.

        Raises:
            BadRow: If the template fails on the messages.
        """
        text, blocks = self._render(messages, with_blocks=with_blocks)
        contents = self._reuse(like, messages[-1], text) if like else None
        return RenderedChat(messages, text, contents or self._locate(messages, text), blocks, {}, self.variables)

    def text(self, messages: list[Message], *, generation_prompt: bool = False) -> str:
        """The text of the messages, with the header of the next assistant turn if `generation_prompt`.

        Raises:
            BadRow: If the template fails on the messages.
        """
        return self._render(messages, generation_prompt=generation_prompt)[0]

    def prompt_text(self, messages: list[Message]) -> str:
        """The model's input at inference: the messages and the header of the next assistant turn."""
        return self.text(messages, generation_prompt=True)

    @cached_property
    def generation_prompt(self) -> str:
        """The header of the next assistant turn; empty if the template can't render it."""
        question: list[Message] = [{"role": "user", "content": SENTINEL}]
        without, text = self.text(question), self.prompt_text(question)
        return text[common_length(without, text) :]

    @cached_property
    def opens(self) -> str:
        """What the generation prompt has after the header of a turn, as `<think>`: turns must begin with it."""
        user: Message = {"role": "user", "content": "a"}
        prompt = self.prompt_text([user])
        header = self.text([user, {"role": "assistant", "content": SENTINEL}]).partition(SENTINEL)[0]
        more = prompt.removeprefix(header)
        return more if prompt.startswith(header) and MARKER.fullmatch(more.strip()) else ""

    def num_given(self, message: Message) -> int:
        """Number of characters of an assistant turn's content that the generation prompt gives."""
        is_given = message["role"] == "assistant" and MARKER.match(message["content"])
        return len(self.opens) if is_given and message["content"].startswith(self.opens) else 0

    def text_before(self, messages: list[Message], index: int) -> str:
        """The text before an assistant turn at inference."""
        if index > 0:
            return self.prompt_text(messages[:index])
        # A chat that starts with an assistant turn has no prompt to render.
        return self.text([{**messages[0], "content": SENTINEL}]).partition(SENTINEL)[0]

    @cached_property
    def ends(self) -> tuple[str, str]:
        """The markers that end the last assistant turn and earlier ones: one, unless a template distinguishes them.

        Of a template that ends the chat with more than the turn's marker, such as an end-of-text, that is left out.
        """
        last = self.shape("assistant")
        tail = last.end if last and last.end else ""
        try:
            later = self.text([*probes("assistant", SENTINEL)[0], {"role": "user", "content": "a"}])
        except BadRow:
            return tail.strip(), tail.strip()
        gap = later.partition(SENTINEL)[2]
        if gap.startswith(tail):
            return tail.strip(), tail.strip()
        return first_marker(tail), first_marker(gap)

    def turn_end(self) -> str:
        """The marker that ends an assistant turn, such as `<|im_end|>`; empty if the template has none.

        Raises:
            BadRow: If the template can't render a user turn and an assistant turn.
        """
        shape = self.shape("assistant")
        if shape is None or shape.end is None:
            self.text(probes("assistant", "b")[0])  # if this fails, its error gives the reason
            self.refuse("does not print the text of an assistant turn unchanged or stripped of whitespace")
        return self.ends[0]

    def shape(self, role: str) -> Shape | None:
        """How messages of a role are printed; None if probes can't show it."""
        if role not in self.shapes:
            found = (try_shape(self.text, chat) for chat in probes(role, SENTINEL))
            self.shapes[role] = next(filter(None, found), None)
        return self.shapes[role]

    def body(self, message: Message) -> str | None:
        """The content of a message as the template prints it; None if that is not known."""
        shape = self.shape(message["role"])
        return shape.fit(message["content"]) if shape else None

    def refuse(self, what: str) -> NoReturn:
        """Raise BadRow for the current row."""
        raise BadRow(DropReason.REFUSED_BY_TEMPLATE, f"{self.name} {what}")

    @cached_property
    def wants_parts(self) -> bool:
        """Whether the template prints contents only as a list of parts, as templates of models that see images do."""
        chat: list[Message] = [{"role": "user", "content": SENTINEL}, {"role": "assistant", "content": SENTINEL}]
        return not self._prints(chat, as_parts=False) and self._prints(chat, as_parts=True)

    def _prints(self, chat: list[Message], *, as_parts: bool) -> bool:
        """Whether the template prints the contents of a chat of SENTINELs."""
        try:
            shown = render_text(self.source, in_parts(chat) if as_parts else chat, self._all_variables)
        except Exception:  # of any type that Jinja and Python know: such a template can't be read
            return False
        return shown.count(SENTINEL) == len(chat)

    def _render(
        self, messages: list[Message], *, generation_prompt: bool = False, with_blocks: bool = False
    ) -> tuple[str, list[Span]]:
        messages = in_parts(messages) if self.wants_parts else messages
        try:
            if with_blocks:
                return render_with_blocks(self.source, messages, self._all_variables)
            prompt = generation_prompt
            return render_text(self.source, messages, self._all_variables, generation_prompt=prompt), []
        except Exception as error:  # a template may fail in any way that Jinja and Python know
            raise BadRow(
                DropReason.REFUSED_BY_TEMPLATE, f"{self.name} fails with {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def _all_variables(self) -> Variables:
        return {**self.tokenizer.special_tokens_map, **self.variables}

    def _locate(self, messages: list[Message], text: str) -> list[Span] | None:
        """The span of each content in `text`; None if it can't be verified.

        The skeleton of a chat is cached by its roles: the next chat of these roles whose text is that skeleton around
        its contents needs no second render.
        """
        fitted = [self.body(message) for message in messages]
        bodies = [body for body in fitted if body is not None]
        if len(bodies) < len(messages):
            return None
        roles = None if any(map(has_extras, messages)) else tuple(message["role"] for message in messages)
        known = self._skeletons.get(roles) if roles else None
        if known and text == "".join(chain.from_iterable(zip(known, [*bodies, ""], strict=True))):
            return spans_between(known, bodies)
        skeleton = find_skeleton(self.text, messages, bodies, text)
        if skeleton and roles and len(self._skeletons) < MAX_SKELETONS:
            self._skeletons[roles] = skeleton
        return spans_between(skeleton, bodies) if skeleton else None

    def _reuse(self, chat: RenderedChat, last: Message, text: str) -> list[Span] | None:
        """The spans of `chat`, if `text` is its text with the content of `last` instead of its last content."""
        body = self.body(last)
        if chat.contents is None or body is None:
            return None
        start, end = chat.contents[-1]
        if text != chat.text[:start] + body + chat.text[end:]:
            return None
        return [*chat.contents[:-1], (start, start + len(body))]


def in_parts(messages: list[Message]) -> list[Message]:
    """The messages with contents as a list of one text part."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def has_extras(message: Message) -> bool:
    """Whether a message has more than a role and a text, such as tool calls, which the template may print."""
    return len(message) > 2 + ("train" in message)
