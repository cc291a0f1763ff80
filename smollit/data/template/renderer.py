"""Renders messages with a chat template, and learns by probes how the template prints a message of each role."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, NoReturn

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message

SENTINEL = "\ue000answer\ue001"  # private-use characters: no template prints this text by itself
MAX_SKELETONS = 10_000
Span = tuple[int, int]  # characters [start, end)


class Shape(NamedTuple):
    """How a template prints the messages of one role.

    Args:
        fit: What it does to the content: nothing, or a strip on one or both sides.
        end: What stands right behind the content and belongs to the turn, such as `<|im_end|>`, without blanks at
            its end; None where the next turn could not be told apart.
    """

    fit: Callable[[str], str]
    end: str | None


class Renderer:
    """A chat template as a function from messages to text.

    Args:
        tokenizer: Whose special tokens the template may use.
        text: The Jinja template.
        name: What errors call the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, name: str = "the chat template") -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.name = name
        self.skeletons: dict[tuple[str, ...] | None, list[str]] = {}  # by the roles of a chat's messages
        self._shapes: dict[str, Shape | None] = {}

    def keep_skeleton(self, roles: tuple[str, ...], skeleton: list[str]) -> None:
        """Remember what the template writes round the contents of messages of these roles."""
        if len(self.skeletons) < MAX_SKELETONS:
            self.skeletons[roles] = skeleton

    def render(self, messages: list[Message], generation_prompt: bool = False) -> str:
        """The text of the messages, with the header of the next answer if `generation_prompt`.

        Raises:
            BadRow: If the template fails on them.
        """
        return self._render(messages, generation_prompt, blocks=False)[0]

    def render_blocks(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """The text of the messages, and the spans of its `{% generation %}` blocks.

        Raises:
            BadRow: If the template fails on them.
        """
        return self._render(messages, generation_prompt=False, blocks=True)

    def prompt_text(self, messages: list[Message]) -> str:
        """What the model is given at inference: the messages and the header of the next answer."""
        return self.render(messages, generation_prompt=True)

    @cached_property
    def generation_prompt(self) -> str:
        """The header of the next answer; empty if the template can't give it."""
        question: list[Message] = [{"role": "user", "content": SENTINEL}]
        without, text = self.render(question), self.prompt_text(question)
        return text[len(without) :] if text.startswith(without) else text

    @property
    def has_generation_prompt(self) -> bool:
        """Whether the template can give the header of the next answer."""
        return self.generation_prompt != ""

    def turn_end(self) -> str:
        """The marker that ends an answer, such as `<|im_end|>`; empty if the template has none.

        Raises:
            BadRow: If the template can't render a question and an answer.
        """
        shape = self.shape("assistant")
        if shape is None or shape.end is None:
            self.render(_probes("assistant", "b")[0])  # where it fails, this says why
            self.refuse("does not print the text of an answer as it is, or with blanks cut off")
        return shape.end.strip()

    def shape(self, role: str) -> Shape | None:
        """How messages of a role are printed; None if it can't be told."""
        if role not in self._shapes:
            found = map(self._try_shape, _probes(role, SENTINEL))
            self._shapes[role] = next(filter(None, found), None)
        return self._shapes[role]

    def refuse(self, what: str) -> NoReturn:
        """Raise BadRow on the row that is at hand."""
        raise BadRow(DropReason.REFUSED_BY_TEMPLATE, f"{self.name} {what}")

    def _try_shape(self, chat: list[Message]) -> Shape | None:
        """How the message whose content is SENTINEL is printed; None if the template fails or rewrites it."""
        place = next(index for index, message in enumerate(chat) if message["content"] == SENTINEL)

        def printed(content: str) -> str:
            return self.render([*chat[:place], {**chat[place], "content": content}, *chat[place + 1 :]])

        try:
            text, blanks = printed(SENTINEL), printed(f" {SENTINEL} ")
        except BadRow:
            return None
        before, found, behind = text.partition(SENTINEL)
        fits: dict[str, Callable[[str], str]] = {
            f"{before} {SENTINEL} {behind}": str,
            f"{before}{SENTINEL}{behind}": str.strip,
            f"{before}{SENTINEL} {behind}": str.lstrip,
            f"{before} {SENTINEL}{behind}": str.rstrip,
        }
        if not found or blanks not in fits:
            return None
        return Shape(fits[blanks], behind.rstrip() if place == len(chat) - 1 else None)

    def _render(self, messages: list[Message], generation_prompt: bool, blocks: bool) -> tuple[str, list[Span]]:
        chat = [_without_train(message) for message in messages]
        try:
            if not blocks and not any(len(message) > 2 for message in chat):
                return self._render_plain(chat, generation_prompt), []
            rendered: Any = render_jinja_template(
                [chat],
                chat_template=self.text,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=blocks,
                **self._special,
            )
        except Exception as error:  # a template may fail in any way that Jinja and Python know
            raise BadRow(
                DropReason.REFUSED_BY_TEMPLATE, f"{self.name} fails with {type(error).__name__}: {error}"
            ) from error
        texts, spans = rendered
        return texts[0], spans[0] if blocks else []

    def _render_plain(self, chat: list[Message], generation_prompt: bool) -> str:
        """As transformers renders messages of a role and a text, without its care for all that others may hold."""
        template, known = _compiled(self.text)
        given = {"messages": chat, "tools": None, "documents": None, "add_generation_prompt": generation_prompt}
        # As Template.render does, but for its walks through all globals on each call.
        environment = template.environment
        context = environment.context_class(
            environment, {**known, **given, **self._special}, template.name, template.blocks
        )
        return environment.concat(template.root_render_func(context))

    @cached_property
    def _special(self) -> dict[str, Any]:
        return self.tokenizer.special_tokens_map


@lru_cache
def _compiled(text: str) -> tuple[Any, dict[str, Any]]:
    """A compiled template and its globals; not kept in a Renderer, which is pickled."""
    template: Any = _compile_jinja_template(text)
    return template, dict(template.globals)


def _without_train(message: Message) -> Message:
    """The message as at inference: whether it is trained is no business of the template's."""
    return {key: value for key, value in message.items() if key != "train"} if "train" in message else message


def _probes(role: str, content: str) -> list[list[Message]]:
    """Chats with a message of the role, last where templates allow it."""
    turn, user = {"role": role, "content": content}, {"role": "user", "content": "a"}
    said = {"role": "assistant", "content": "b"}
    if role == "assistant":
        return [[user, turn], [turn]]
    return [[turn], [user, turn], [user, said, turn], [turn, user]]
