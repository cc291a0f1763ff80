"""How loss spans are found in a chat template, verified on chats of many shapes: `inspect --template`."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from smollit.commands.console import say
from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.types import Conversation, Message
from smollit.data.template.notes import notes, problems
from smollit.data.template.template import ChatTemplate, load_template
from smollit.data.template.tokenize import Segment, load_tokenizer
from smollit.data.template.train_on import through_last_loss

TINY = Path(__file__).parents[2] / "models" / "tiny"  # its tokenizer serves a template without a model
CALL = {"type": "function", "function": {"name": "add", "arguments": {"one": "1", "two": "2"}}}
PARAMETERS = {"type": "object", "properties": {"one": {"type": "string", "description": "One."}}, "required": ["one"]}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}
MARKS = {"read": "✓", "refused": "-", "wrong": "✗"}


class Shape(NamedTuple):
    """A chat that a template is tried with, and what the template gets besides."""

    messages: list[Message]
    variables: dict[str, Any] = {}


class Tried(NamedTuple):
    """How a template reads a shape.

    Args:
        verdict: `read`, `refused` (by the template, or because a span can't be verified), or `wrong`.
        loss: The text of each loss span.
        detail: Why it was refused, or what is wrong.
        unprinted: What the template does not print.
    """

    verdict: Literal["read", "refused", "wrong"]
    loss: tuple[str, ...] = ()
    detail: str = ""
    unprinted: tuple[str, ...] = ()


def _user(number: int, text: str = "") -> Message:
    return {"role": "user", "content": text or f"Question {number}?"}


def _said(number: int, text: str = "", **keys: Any) -> Message:
    return {"role": "assistant", "content": text or f"Reply {number}.", **keys}


SYSTEM: Message = {"role": "system", "content": "Be brief."}
CALLED: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: Message = {"role": "tool", "name": "add", "content": "The sum is 3."}
SHAPES: dict[str, Shape] = {
    "one turn": Shape([_user(0), _said(0)]),
    "several turns": Shape([_user(0), _said(0), _user(1), _said(1), _user(2), _said(2)]),
    "system": Shape([SYSTEM, _user(0), _said(0), _user(1), _said(1)]),
    "whitespace": Shape([_user(0, " Question 0? \n"), _said(0, "\n  Reply 0. \n"), _user(1), _said(1, " Reply\n\n1.")]),
    "tools": Shape([_user(0), CALLED, RESULT, _said(1)], {"tools": [TOOL]}),
    "tools, more turns": Shape([_user(0), CALLED, RESULT, _said(1), _user(2), _said(2)], {"tools": [TOOL]}),
    "reasoning": Shape(
        [_user(0), _said(0, reasoning_content="I think 0."), _user(1), _said(1, reasoning_content="So 1.")]
    ),
    "starts with assistant": Shape([_said(0), _user(1), _said(1)]),
    "ends with user": Shape([_user(0), _said(0), _user(1)]),
}


def try_shape(template: ChatTemplate, shape: Shape) -> Tried:
    """Render a chat, find its loss spans, and compare them with its messages by another way than they are found.

    The text must be transformers' own, of the messages through the last assistant turn; each assistant turn's text must
    be in a loss span of its own, together with its calls; and no other message's text in any.
    """
    try:
        row = template.segment_chat(Conversation(shape.messages, shape.variables))
    except BadRow as bad:
        return Tried("refused", detail=bad.detail)
    loss = _spans(row.segments)
    messages = template.as_rendered(through_last_loss(shape.messages, "assistant"))
    text = template.tokenizer.apply_chat_template(
        messages, chat_template=template.source, tokenize=False, **shape.variables
    )
    assert isinstance(text, str)
    problems = [] if text.startswith("".join(s.text for s in row.segments)) else ["the text is not transformers' own"]
    said = [message for message in shape.messages if message["role"] == "assistant"]
    said = said[-1:] if template.span_source == "last" else said
    others = [message["content"].strip() for message in shape.messages if message["role"] != "assistant"]
    problems += [f"{span!r} holds the text of another message" for span in loss if any(o in span for o in others)]
    if len(loss) != len(said):
        problems.append(f"{len(loss)} loss spans for {len(said)} turns")
    problems += [
        f"{span!r} is not the turn {message['content']!r}"
        for span, message in zip(loss, said, strict=False)
        if message["content"].strip() not in span or ("tool_calls" in message and "add" not in span)
    ]
    return Tried("wrong" if problems else "read", tuple(loss), "; ".join(problems), template.unprinted(row))


def show_template(name: str, tokenizer_name: str | None, console: Console) -> bool:
    """Print how the spans of a template are found, and each shape; whether turns end, and all that is read is right.

    Args:
        name: A Jinja file, or the Hub id or folder of a model whose tokenizer has a template.
        tokenizer_name: The tokenizer of a Jinja file; null takes a tiny one.
        console: Where to print.
    """
    is_file = Path(name).is_file()
    if not is_file and name.endswith(".jinja"):
        raise ValueError(f"`--template` names a Jinja file, or a model: {name!r} does not exist")
    tokenizer = load_tokenizer(tokenizer_name or (str(TINY) if is_file else name))
    template = load_template(tokenizer, name if is_file else "auto", allow_default=False)
    for line in notes(template):
        say(console, line)
    stops = ", ".join(tokenizer.convert_ids_to_tokens(template.stop_ids())) or "none"
    say(
        console,
        f"generation prompt {template.generation_prompt!r}, end of a turn {template.turn_end()!r}, stops {stops}\n",
    )
    tried = {label: try_shape(template, shape) for label, shape in SHAPES.items()}
    for label, found in tried.items():
        say(console, f"{MARKS[found.verdict]} {label}: {found.verdict}" + (f", {found.detail}" if found.detail else ""))
        for span in found.loss:
            say(console, repr(span), indent=4)
        if found.unprinted:
            say(console, f"not printed: {', '.join(found.unprinted)}", indent=4)
    for problem in problems(template):
        say(console, f"{MARKS['wrong']} {problem}")
    return not problems(template) and all(found.verdict != "wrong" for found in tried.values())


def _spans(segments: tuple[Segment, ...]) -> list[str]:
    """The text of each loss span; control text divides a span into several segments."""
    spans: list[str] = []
    before: Segment | None = None
    for segment in segments:
        if segment.in_loss and before is not None and before.in_loss and before.message == segment.message:
            spans[-1] += segment.text
        elif segment.in_loss:
            spans.append(segment.text)
        before = segment
    return spans
