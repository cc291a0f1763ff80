"""Which characters of a rendered chat count in the loss: assistant turns and their end markers, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Preference
from smollit.data.template.template import ChatTemplate, load_template
from tests.data.conftest import assistant, user

Load = Callable[..., ChatTemplate]
Messages = list[dict[str, Any]]
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{{ '\\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"
PREFIX = TURNS + PROMPT
TRIM = PREFIX.replace("m.content", "m.content | trim")
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<end>{% endgeneration %}{% else %}{{ m.content }}<end>{% endif %}{{ '\\n' }}"
    "{% endfor %}" + PROMPT
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' </s>' }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [user("a?"), assistant("b."), user("c?"), assistant("d.")]


def in_loss(template: ChatTemplate, messages: Messages, train_on: Any = "assistant") -> list[str]:
    """The text of each loss span."""
    chat = template.render(messages)
    return [chat.text[start:end] for start, end, _ in template.loss_spans(chat, train_on)]


def context(template: ChatTemplate, messages: Messages) -> list[str]:
    """The text before each loss span: segments divide it further where control text stands in it."""
    joined: dict[int, str] = {}
    for segment in template.segment_chat(Conversation(messages)).segments:
        if not segment.in_loss:
            joined[segment.message] = joined.get(segment.message, "") + segment.text
    return list(joined.values())


def pair_texts(template: ChatTemplate, pair: Preference) -> list[str]:
    """Prompt, chosen, rejected."""
    segments = template.segment_pair(pair).segments
    assert [segment.in_loss for segment in segments] == [segment.branch != "shared" for segment in segments]
    return ["".join(s.text for s in segments if s.branch == branch) for branch in ("shared", "chosen", "rejected")]


# ---- assistant turns


# case: mask-05
def test_every_assistant_turn_counts_with_its_end_and_nothing_else(chatml: ChatTemplate) -> None:
    assert in_loss(chatml, CHAT) == ["b.<|im_end|>", "d.<|im_end|>"]
    assert context(chatml, CHAT) == [
        "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\nc?<|im_end|>\n<|im_start|>assistant\n",
    ]


# case: mask-03
# case: mask-10
@pytest.mark.shared
def test_smollm2s_assistant_turn_follows_transformers_generation_prompt(instruct: PreTrainedTokenizerBase) -> None:
    """Segments of [user hi, assistant yo]: the prompt as transformers renders it; yo and the end, no newline."""
    messages = [user("hi"), assistant("yo")]
    prompt = instruct.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    row = load_template(instruct, "auto").segment_chat(Conversation(messages))
    assert [(segment.text, segment.in_loss) for segment in row.segments] == [(prompt, False), ("yo<|im_end|>", True)]


@pytest.mark.parametrize("content", ["  yo", "yo \n", "\n\n yo", "\u2003yo\u2003", "assistant", "user", "a", "<"])
def test_whitespace_and_words_of_the_header_stay_in_the_loss(
    chatml: ChatTemplate, tiny_tokenizer: PreTrainedTokenizerBase, content: str
) -> None:
    """What a template prints counts, whole; one that trims prints less."""
    messages = [user(content), assistant(content)]
    assert in_loss(chatml, messages) == [content + "<|im_end|>"]
    assert in_loss(ChatTemplate(tiny_tokenizer, PREFIX), messages) == [content + "<end>"]
    assert in_loss(ChatTemplate(tiny_tokenizer, BARE), messages) == [content]
    assert in_loss(ChatTemplate(tiny_tokenizer, TRIM), messages) == [content.strip() + "<end>"]


# case: mask-11
def test_a_chat_may_start_and_end_with_any_turn(tiny_tokenizer: PreTrainedTokenizerBase, chatml: ChatTemplate) -> None:
    """[assistant A, user B, assistant C, user D]: A and C count, not B; D is left out, since nothing follows it."""
    messages = [assistant("A"), user("B"), assistant("C"), user("D")]
    row = ChatTemplate(tiny_tokenizer, BARE).segment_chat(Conversation(messages))
    assert [(segment.text, segment.in_loss) for segment in row.segments] == [("A", True), ("B", False), ("C", True)]
    assert in_loss(chatml, messages) == ["A<|im_end|>", "C<|im_end|>"]
    assert context(chatml, messages)[0] == "<|im_start|>assistant\n"


# case: mask-10
def test_text_that_the_generation_prompt_gives_does_not_count(load: Load) -> None:
    """An empty thought, in assistant turns and in the generation prompt alike, is context."""
    thought = "{{ '<think></think>' if m.role == 'assistant' }}"
    template = load(TURNS.replace("{{ m.content", thought + "{{ m.content") + PROMPT.replace("t>", "t><think></think>"))
    assert in_loss(template, [user("a"), assistant("think")]) == ["think<end>"]


# case: template-10
def test_tool_results_do_not_count(chatml: ChatTemplate) -> None:
    messages = [user("q"), assistant("call"), turn("tool", "42"), assistant("a")]
    assert in_loss(chatml, messages) == ["call<|im_end|>", "a<|im_end|>"]
    assert "42" in context(chatml, messages)[1]
    assert pair_texts(chatml, Preference(messages[:3], assistant("a"), assistant("b")))[1:] == [
        "a<|im_end|>",
        "b<|im_end|>",
    ]


@pytest.mark.parametrize("source", [PREFIX, MARKED, BARE])
def test_tool_calls_that_the_template_prints_count(load: Load, source: str) -> None:
    """With text or without; in BARE no end marker shows where they end."""
    end = "" if source == BARE else "<end>"
    template = load(source.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}"))
    messages = [user("a"), assistant("I add.", tool_calls=" add(1)"), user("c"), assistant("", tool_calls="add(2)")]
    assert in_loss(template, messages) == ["I add. add(1)" + end, "add(2)" + end]


# ---- which messages count


# case: mask-08
@pytest.mark.parametrize("source", [PREFIX, MARKED])
@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("assistant", ["b.<end>", "d.<end>"]),
        ("last", ["d.<end>"]),
        (("user",), ["a?<end>", "c?<end>"]),
        (("assistant", "user"), ["a?<end>", "b.<end>", "c?<end>", "d.<end>"]),
        (("system", "tool"), ["s<end>", "t<end>"]),
    ],
)
def test_train_on_says_whose_turns_count(load: Load, source: str, train_on: Any, expected: list[str]) -> None:
    """Headers do not count, whoever speaks."""
    messages = [turn("system", "s"), *CHAT[:2], turn("tool", "t"), *CHAT[2:]]
    assert in_loss(load(source), messages, train_on) == expected


@pytest.mark.parametrize("source", [PREFIX, MARKED])
def test_a_messages_own_train_overrides_train_on(load: Load, source: str) -> None:
    messages = [user("a", train=True), assistant("b", train=False), user("c"), assistant("d")]
    template = load(source.replace("<end>", "{{ m.train }}<end>"))  # templates never see it
    assert in_loss(template, messages) == ["a<end>", "d<end>"]
    assert in_loss(template, [*messages[:3], assistant("d", train=False)], "last") == ["a<end>"]
    with pytest.raises(BadRow, match=r"no loss tokens: no message counts in the loss: `data\.train_on` is 'last'"):
        in_loss(template, [user("a"), assistant("b", train=False)], "last")


# case: template-10
@pytest.mark.parametrize("source", [PREFIX, TRIM])
def test_a_response_continues_the_prompts_last_turn(load: Load, source: str) -> None:
    """A prompt that ends with assistant "Sure: " and "yes" are one turn "Sure: yes", of which "yes<end>" counts.

    A template that trims prints 6 of the 8 given characters of "  Sure: ": these are context, too.
    """
    template, given = load(source), assistant("  Sure: " if source == TRIM else "Sure: ")
    before = "<user>q<end>\n<assistant>Sure: "
    chat = [user("q"), {**given, "train": False}, assistant("yes")]
    assert in_loss(template, chat) == in_loss(template, chat, "last") == ["yes<end>"]
    assert context(template, chat) == [before]
    pair = Preference([user("q"), given], assistant("yes"), assistant("no"))
    assert pair_texts(template, pair) == [before, "yes<end>", "no<end>"]


# case: template-01
# case: dpo-loss-08
@pytest.mark.shared
def test_responses_of_a_pair_hold_no_system_text(instruct: PreTrainedTokenizerBase) -> None:
    """SmolLM2's template adds a system turn to a turn that is rendered alone; here it stands once, in the prompt."""
    pair = Preference([user("q")], assistant("a"), assistant("b"))
    prompt, *responses = pair_texts(load_template(instruct, "auto"), pair)
    assert prompt.count("<|im_start|>system") == 1
    assert responses == ["a<|im_end|>", "b<|im_end|>"]


# ---- how spans are found


# case: mask-03
def test_markers_are_used_where_they_are_sound(load: Load) -> None:
    template = load(MARKED)
    assert template.span_source == "markers"
    assert in_loss(template, CHAT) == ["b.<end>", "d.<end>"]
    assert context(template, CHAT) == ["<user>a?<end>\n<assistant>", "\n<user>c?<end>\n<assistant>"]


@pytest.mark.parametrize(
    "source",
    [
        MARKED.replace("<{{ m.role }}>{% if", "{% if")
        .replace("{% generation %}", "{% generation %}<assistant>")
        .replace("{% else %}{{", "{% else %}<{{ m.role }}>{{"),
        MARKED.replace("<end>{% endgeneration %}", "{% endgeneration %}<end>"),
        MARKED.replace("{% if m.role == 'assistant' %}{% gen", "{% if m.role == 'assistant' and loop.first %}{% gen"),
    ],
    ids=["header inside", "end marker outside", "not every turn"],
)
def test_unsound_markers_give_way_to_prefixes(load: Load, source: str) -> None:
    """A header in the block would count; an end outside of it would not. Prefixes find the right spans."""
    template = load(source)
    assert template.span_source == "prefix"
    assert in_loss(template, CHAT) == ["b.<end>", "d.<end>"]


def test_markers_serve_templates_that_rewrite_earlier_turns(load: Load) -> None:
    """Only the last turn may keep its whitespace: a chat need not start with its prompts, and the blocks are right."""
    trims = "{{ m.content if loop.last else m.content | trim }}<end>{% end"
    template = load(MARKED.replace("{{ m.content }}<end>{% end", trims))
    assert template.span_source == "markers"
    assert in_loss(template, [user("a"), assistant("b"), user("c"), assistant("d ")]) == ["b<end>", "d <end>"]


THINKS = TURNS.replace("{{ m.content", "{{ '<think></think>' if m.role == 'assistant' and loop.last }}{{ m.content")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # An empty block that the prompt lacks: the model must write it. Earlier turns are printed without one.
        (THINKS + PROMPT, ["b.<end>", "<think></think>d.<end>"]),
        # A prompt that opens the block, with a line end or without: the model must close it.
        (THINKS + PROMPT.replace("t>", "t><think>"), ["b.<end>", "</think>d.<end>"]),
        (THINKS + PROMPT.replace("t>", "t><think>\n"), ["b.<end>", "</think>d.<end>"]),
        (THINKS + PROMPT.replace("t>", "t><think></think>"), ["b.<end>", "d.<end>"]),
        # An end of text after the last turn is not the turn's.
        (
            TURNS.replace("{{ '\\n' }}", "") + PROMPT.replace("{% endif", "{% else %}<eos>{% endif"),
            ["b.<end>", "d.<end>"],
        ),
        # The last turn has an end marker of its own.
        (
            PREFIX.replace("<end>", "{{ '<bye>' if loop.last and m.role == 'assistant' else '<end>' }}"),
            ["b.<end>", "d.<bye>"],
        ),
        # Contents as lists of parts, and texts where there are none are empty.
        (PREFIX.replace("m.content", "m.content[0]['text']"), ["b.<end>", "d.<end>"]),
        # Periods of earlier turns are removed: their texts are not the row's, and only the last turn counts.
        (PREFIX.replace("m.content", "(m.content if loop.last else m.content | replace('.', ''))"), ["d.<end>"]),
    ],
)
def test_templates_whose_prompts_differ_from_the_chat_in_known_ways_are_read(
    load: Load, source: str, expected: list[str]
) -> None:
    """Of a chat and of a pair: spans start where inference starts, and end with the turn's marker."""
    template = load(source)
    assert in_loss(template, CHAT) == expected
    prompt, chosen, rejected = pair_texts(template, Preference(CHAT[:3], assistant("d."), assistant("e.")))
    assert (chosen, rejected) == (expected[-1], expected[-1].replace("d.", "e."))
    assert template.prompt_text(CHAT[:3]).removesuffix("\n") == prompt


def test_inst_templates_put_the_space_that_the_prompt_does_not_give_into_the_loss(load: Load) -> None:
    """`<s>[INST] a? [/INST]` is the prompt; ` b. </s>` follows. Only user and assistant are known."""
    template = load(LLAMA2)
    assert template.span_source == "prefix"
    assert in_loss(template, [user(" a? "), assistant(" b. "), *CHAT[2:]]) == [" b. </s>", " d. </s>"]
    with pytest.raises(BadRow, match="no such role"):
        in_loss(template, [turn("system", "x"), *CHAT])


def test_the_prompt_is_verified_on_each_row(load: Load) -> None:
    """The generation prompt changes once somebody writes /think, which no probe does: such rows are refused."""
    header = "<assistant>{{ '<think>' if '/think' in messages[0].content }}"
    template = load(TURNS + PROMPT.replace("<assistant>", header))
    assert in_loss(template, CHAT) == ["b.<end>", "d.<end>"]
    with pytest.raises(BadRow) as caught:
        in_loss(template, [user("a /think"), *CHAT[1:]])
    assert caught.value.reason == DropReason.REFUSED_BY_TEMPLATE


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("{{ raise_exception('no') }}", "fails with TemplateError: no"),
        ("{{ messages[0].absent.key }}", "fails with UndefinedError"),
        ("{{ 1 // 0 }}", "fails with ZeroDivisionError"),
        ("{% for %}", "fails with TemplateSyntaxError"),
    ],
)
def test_a_template_that_fails_refuses_the_row_by_name(
    tiny_tokenizer: PreTrainedTokenizerBase, broken: str, what: str
) -> None:
    template = ChatTemplate(tiny_tokenizer, PREFIX + broken, name="the chat template mine.jinja")
    with pytest.raises(BadRow, match=r"mine\.jinja " + what) as caught:
        template.segment_chat(Conversation(CHAT))
    assert caught.value.reason == DropReason.REFUSED_BY_TEMPLATE


# ---- the rendered text


CALL = {"name": "f", "arguments": {"ö": [1, "<b>"]}}


@pytest.mark.parametrize("generation_prompt", [False, True])
@pytest.mark.parametrize(
    "messages",
    [CHAT, [user("a"), assistant("b", tool_calls=[CALL]), user("c"), assistant("d", thinking="hm")]],
    ids=["texts", "tool calls and thoughts"],
)
def test_templates_render_as_transformers_renders_them(
    load: Load, tiny_tokenizer: PreTrainedTokenizerBase, messages: Messages, generation_prompt: bool
) -> None:
    """With its tags, filters and functions, and the tokenizer's special tokens."""
    source = (
        "{{ strftime_now('%Y') }}{{ eos_token }}\n{% for m in messages %}\n  "
        "{% if loop.index > 9 %}{% break %}{% endif %}{% if m.train %}{{ raise_exception('train') }}{% endif %}"
        "{% set space = namespace(said=m.content) %}<{{ m.role }}>{{ space.said }}"
        "{{ m.tool_calls | tojson if m.tool_calls }}{{ m.reasoning_content }}<end>\n{% endfor %}" + PROMPT
    )
    template = load(source)
    seen = [{**message, "train": True} for message in messages]
    text = template.prompt_text(seen) if generation_prompt else template.render(seen).text
    assert text == tiny_tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=generation_prompt
    )
    assert "<user>" in text


@pytest.mark.parametrize("source", [PREFIX, MARKED, LLAMA2])
def test_contents_are_located_even_where_they_look_alike(load: Load, source: str) -> None:
    """Contents that equal headers, each other, or nothing: slices of the text are the (trimmed) contents, in order."""
    template = load(source)
    contents = ["<user>", "<user>", "", " x ", "\ue000\ue001", "\ue000"]
    messages = [turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)]
    for _ in range(2):  # the second time by what the first one learned
        chat = template.render(messages)
        assert chat.contents == sorted(chat.contents or [])
        printed = [chat.text[start:end] for start, end in chat.contents]
        assert printed == [content.strip() if source == LLAMA2 else content for content in contents]


def test_what_was_learned_of_a_chat_is_verified_on_the_next(load: Load) -> None:
    """Contents that start with ! are printed in another way: they are not located, and the span is found by renders.

    `<user>a<end>\\n<assistant>b` has a at 6 and b at 24.
    """
    template = load(TURNS.replace("{{ m.content }}", "{{ '(' if m.content.startswith('!') }}{{ m.content }}") + PROMPT)
    assert template.render([user("a"), assistant("b")]).contents == [(6, 7), (24, 25)]
    assert template.render([user("!"), assistant("b")]).contents is None
    assert in_loss(template, [user("!"), assistant("b")]) == ["b<end>"]
