"""Jinja chat templates: read by name, and rendered exactly as transformers renders them."""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import Name, Test
from transformers import PreTrainedTokenizerBase

# Private, since no public function is as fast: `render_jinja_template` copies every message and walks through all
# globals on each call, which costs 11 % of the rows per second of encoding. The environment (its sandbox, its
# `{% generation %}` tag, `strftime_now`, `raise_exception`, `tojson`) must be transformers' own.
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from smollit.data.formats.types import Message, Variables

Span = tuple[int, int]  # [start, end), in characters or tokens
RESERVED = ("messages", "tools", "documents", "add_generation_prompt")  # variables that are no switches


def read_source(tokenizer: PreTrainedTokenizerBase, choice: str, allow_default: bool) -> tuple[str, str]:
    """The template's source, and its name in errors.

    Raises:
        ValueError: If the file is missing or not UTF-8, or the tokenizer has no template and none may be assumed, or
            several.
    """
    several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if several and (choice in several or (choice == "auto" and "default" not in several)):
        if choice not in several:
            raise ValueError(
                f"the tokenizer has the chat templates {', '.join(several)}, and none is its default: set"
                " `data.chat_template` to one of them"
            )
        return several[choice], f"the tokenizer's chat template {choice}"
    if choice == "auto" and tokenizer.chat_template:
        return tokenizer.get_chat_template(), "the tokenizer's chat template"
    if choice == "auto" and not allow_default:
        raise ValueError(
            "the tokenizer has no chat template: start from a folder that an SFT run exported (it has one),"
            " or set `data.chat_template` to chatml or a Jinja file"
        )
    if choice in ("auto", "chatml", "article"):
        name = "chatml" if choice == "auto" else choice
        source = (files("smollit.data.template") / f"{name}.jinja").read_text(encoding="utf-8")
        return source, f"the chat template {name}"
    path = Path(choice).expanduser()
    if not path.is_file():
        names = ", ".join(["auto", "chatml", "article", *several])
        raise ValueError(f"`data.chat_template` must be {names} or a Jinja file, and {choice!r} is not a file")
    try:
        return path.read_text(encoding="utf-8-sig"), f"the chat template {choice}"
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`data.chat_template`: {choice} is not UTF-8 (byte {error.start}): convert it, as with iconv -f latin1 -t"
            " utf-8"
        ) from error


def render_text(source: str, messages: list[Message], variables: Variables, *, generation_prompt: bool = False) -> str:
    """The text of the messages, with other variables of the template: its special tokens, and a row's own."""
    chat = _without_train(messages)
    if "tools" in variables or any(len(message) > 2 for message in chat):  # transformers prepares tools and thoughts
        rendered: Any = render_jinja_template(
            [chat], chat_template=source, add_generation_prompt=generation_prompt, **variables
        )
        return str(rendered[0][0])
    template, known = _compiled(source)
    given = {"messages": chat, "tools": None, "documents": None, "add_generation_prompt": generation_prompt}
    environment = template.environment
    context = environment.context_class(environment, {**known, **given, **variables}, template.name, template.blocks)
    return environment.concat(template.root_render_func(context))


def render_with_blocks(source: str, messages: list[Message], variables: Variables) -> tuple[str, list[Span]]:
    """The text of the messages, and the spans of its `{% generation %}` blocks."""
    chat = _without_train(messages)
    rendered: Any = render_jinja_template([chat], chat_template=source, return_assistant_tokens_mask=True, **variables)
    texts, blocks = rendered
    return texts[0], blocks[0]


def with_defaults(source: str, switches: Variables, special: Variables) -> str:
    """The template with the switches as defaults, so that training and the exported tokenizer render the same text.

    What a caller passes still overrides them, except for special tokens, which every caller passes.

    Raises:
        ValueError: If the template does not read a switch, or it sets what every chat sets.
    """
    known, lines = read_variables(source) if switches else frozenset[str](), []
    for name, value in switches.items():
        if not name.isidentifier() or name in RESERVED:
            raise ValueError(f"`data.chat_template_kwargs` has the key {name!r}, which is no switch of a template")
        if name not in known:
            names = ", ".join(sorted(known - {*RESERVED, *special, *_own_variables(source)})) or "none"
            raise ValueError(
                f"`data.chat_template_kwargs` has the key {name!r}, which the chat template does not read. It reads:"
                f" {names}"
            )
        line = f"{{% set {name} = {value!r} %}}"
        lines.append(line if name in special else f"{{% if {name} is not defined %}}{line}{{% endif %}}")
    # An empty expression, since the newline after a block would be removed.
    return "".join(lines) + "{{ '' }}" + source if lines else source


@lru_cache
def read_variables(source: str) -> frozenset[str]:
    """The variables that a template reads."""
    environment = _compile_jinja_template(source).environment
    return frozenset(find_undeclared_variables(environment.parse(source)))


def _own_variables(source: str) -> set[str]:
    """The variables that a template sets itself, without those to which it gives a default."""
    tree = _compile_jinja_template(source).environment.parse(source)
    tested = {test.node.name for test in tree.find_all(Test) if isinstance(test.node, Name)}
    return {name.name for name in tree.find_all(Name) if name.ctx == "store"} - tested


@lru_cache
def _compiled(source: str) -> tuple[Template, dict[str, Any]]:
    """A compiled template and its globals; not kept in a Renderer, which is pickled."""
    template: Template = _compile_jinja_template(source)
    return template, dict(template.globals)


def _without_train(messages: list[Message]) -> list[Message]:
    """The messages as at inference: whether they count in the loss does not concern the template."""
    return [
        {key: value for key, value in message.items() if key != "train"} if "train" in message else message
        for message in messages
    ]
