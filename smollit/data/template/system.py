"""The system text that a template adds by itself to chats without one: found, replaced or taken out, with a proof."""

from typing import NamedTuple

from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.types import Message
from smollit.data.template.probe import probe_chats
from smollit.data.template.renderer import SENTINEL, Renderer

DROP = ("drop", "")  # no text is no system turn
USER: Message = {"role": "user", "content": "Who are you?"}


class Block(NamedTuple):
    """The default system turn as rendered: what stands before the text, the text, and what ends the turn."""

    before: str
    text: str
    end: str


def default_system(renderer: Renderer) -> Block | None:
    """The system turn that the template adds to a chat without one; None if it adds none.

    It is what a chat without a system message has in the place where a chat with one has that.
    """
    system: Message = {"role": "system", "content": SENTINEL}
    try:
        alone, both, without = (renderer.render(chat) for chat in ([system], [system, USER], [USER]))
    except BadRow:
        return None
    before, found, end = alone.partition(SENTINEL)
    behind = end + both[len(alone) :]
    text = without[len(before) : len(without) - len(behind)]
    same = both.startswith(alone) and without == before + text + behind
    return Block(before, text, end) if found and same and text else None


def change_default_system(renderer: Renderer, choice: str) -> str:
    """The template's source with its default system text kept (`keep`), taken out (`drop`), or replaced by `choice`.

    Raises:
        ValueError: If the source does not hold the text, so that it can't be changed, or there is none to replace.
    """
    block = default_system(renderer) if choice != "keep" else None
    if choice == "keep" or (block is None and choice in DROP):
        return renderer.text
    if block is None:
        raise ValueError(
            f"`data.default_system` is a text, but {renderer.name} adds no system text that it could replace: put a"
            " system message into the data, or give a Jinja file that adds one as `data.chat_template`"
        )
    for old, new in _replacements(block, choice):
        for written, source in _spellings(old, new):
            changed = renderer.text.replace(written, source)
            if changed != renderer.text and _only_changes(renderer, changed, block, old, new):
                return changed
    raise ValueError(
        f"`data.default_system` can't be applied: the source of {renderer.name} does not hold its system text"
        f" {block.text!r} in a form that can be changed. Give a Jinja file as `data.chat_template`, or put system"
        " messages into the data"
    )


def _replacements(block: Block, choice: str) -> list[tuple[str, str]]:
    """Rendered texts to replace, and by what; what stands before a dropped turn may begin with BOS, which stays."""
    if choice not in DROP:
        return [(block.text, choice)]
    return [(block.before[start:] + block.text + block.end, "") for start in range(len(block.before))]


def _spellings(old: str, new: str) -> list[tuple[str, str]]:
    """How a source may write a text, and a new one in its place: inside a Jinja string, or as bare text."""
    escaped = new.replace("\\", "\\\\").replace("'", "\\'").replace('"', '\\"')
    lines = old.replace("\\", "\\\\").replace("\n", "\\n")
    olds = dict.fromkeys((old, lines, lines.replace("'", "\\'"), lines.replace('"', '\\"'), old.replace("'", "\\'")))
    return [(written, source) for written in olds for source in dict.fromkeys((escaped, new))]


def _only_changes(renderer: Renderer, source: str, block: Block, old: str, new: str) -> bool:
    """Whether chats without a system message have the new text in the old one's place, and others are as before."""
    changed = Renderer(renderer.tokenizer, source, renderer.name)
    place = len(block.before + block.text + block.end) - len(block.end if new else "") - len(old)
    try:
        for messages in [[USER], *probe_chats()]:
            for prompt in (False, True):
                text = _render(renderer, messages, prompt)
                if text is not None and text.startswith(block.before + block.text + block.end):
                    text = text[:place] + new + text[place + len(old) :]
                if _render(changed, messages, prompt) != text:
                    return False
    except BadRow:
        return False
    return _render(changed, [USER], False) != _render(renderer, [USER], False)


def _render(renderer: Renderer, messages: list[Message], generation_prompt: bool) -> str | None:
    """The rendered chat; None if the template refuses it."""
    try:
        return renderer.render(messages, generation_prompt)
    except BadRow:
        return None
