"""Which characters of a rendered chat are trained: by generation markers, or by rendering the turns before."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Preference
from smollit.data.template.template import ChatTemplate, load_template

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{{ '\\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<end>{% endgeneration %}{% else %}{{ m.content }}<end>{% endif %}{{ '\\n' }}"
    "{% endfor %}" + PROMPT
)
# Thoughts of earlier turns are taken out once more turns follow: no prefix of the whole is what a prompt would be.
FORGETS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content if loop.last else m.content | replace('.', '') }}<end>{% endgeneration %}"
    "{% else %}{{ m.content }}<end>{% endif %}{{ '\\n' }}{% endfor %}" + PROMPT
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' </s>' }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [turn("user", "a?"), turn("assistant", "b."), turn("user", "c?"), turn("assistant", "d.")]


@pytest.fixture
def load(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Any:
    """Loads a template from its text, as users do from a file."""

    def build(text: str, **options: Any) -> ChatTemplate:
        (tmp_path / "mine.jinja").write_text(text)
        return load_template(tiny_tokenizer, str(tmp_path / "mine.jinja"), **options)

    return build


def trained(template: ChatTemplate, messages: list[dict[str, Any]], train_on: Any = "assistant") -> list[str]:
    segments = template.segment_chat(Conversation(messages), train_on).segments
    return [segment.text for segment in segments if segment.in_loss]


def context(template: ChatTemplate, messages: list[dict[str, Any]]) -> list[str]:
    return [segment.text for segment in template.segment_chat(Conversation(messages)).segments if not segment.in_loss]


# ---- which way


# case: mask-03
def test_markers_are_used_where_they_are_sound(load: Any) -> None:
    template = load(MARKED)
    assert template.span_source == "markers"
    assert trained(template, CHAT) == ["b.<end>", "d.<end>"]
    assert context(template, CHAT) == ["<user>a?<end>\n<assistant>", "\n<user>c?<end>\n<assistant>"]


@pytest.mark.parametrize(
    "text",
    [
        MARKED.replace("<{{ m.role }}>{% if", "{% if").replace("{% generation %}", "{% generation %}<assistant>"),
        MARKED.replace("<end>{% endgeneration %}", "{% endgeneration %}<end>"),
        MARKED.replace("{% if m.role == 'assistant' %}{% gen", "{% if m.role == 'assistant' and loop.first %}{% gen"),
    ],
    ids=["header inside", "end marker outside", "not every answer"],
)
def test_unsound_markers_give_way_to_prefixes(load: Any, text: str) -> None:
    """A header in the block would be trained; an end outside of it would not; both are mended by the other way."""
    text = text.replace("{% else %}{{", "{% else %}<{{ m.role }}>{{") if "<{{ m.role }}>{% if" not in text else text
    template = load(text)
    assert template.span_source == "prefix"
    assert trained(template, CHAT) == ["b.<end>", "d.<end>"]


def test_markers_serve_templates_that_rewrite_earlier_turns(load: Any) -> None:
    """Answers keep their text only in the last turn: the whole does not start with any prompt, yet blocks say it."""
    template = load(FORGETS.replace("replace('.', '')", "trim"))
    assert template.span_source == "markers"
    assert trained(template, [turn("user", "a"), turn("assistant", "b ")]) == ["b <end>"]


def test_a_template_for_which_neither_way_is_sound_is_refused_with_both_reasons(load: Any) -> None:
    with pytest.raises(ValueError, match=r"`data\.chat_template`: .*generation block.*, and .*mine\.jinja") as caught:
        load(FORGETS)
    assert "another way once more turns follow" in str(caught.value)


@pytest.mark.parametrize("prompt", [PROMPT.replace("<assistant>", "<assistant><think>"), ""])
def test_markers_are_not_sound_where_another_prompt_stands_before_them(load: Any, prompt: str) -> None:
    """The blocks are right, but at inference the answer would follow other text."""
    with pytest.raises(ValueError, match=r"puts something else before messages\[1\].*, and "):
        load(MARKED.replace(PROMPT, prompt))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TURNS, "has no generation prompt"),
        (TURNS + "{{ messages | length }}" + PROMPT, "puts something else before"),
        (
            TURNS.replace("m.content", "m.content | upper") + PROMPT,
            "does not print the text of an assistant turn unchanged",
        ),
        (TURNS + PROMPT.replace("<assistant>", "<assistant><think>"), "puts something else before"),
        (TURNS + "{{ '!' if messages[-1].role == 'assistant' }}" + PROMPT, "another way once more turns follow"),
    ],
)
def test_templates_without_sound_prefixes_are_refused_when_loaded(load: Any, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        load(text)
    assert "`data.chat_template`" in str(caught.value)


def test_text_between_header_and_answer_that_no_prompt_gives_is_not_trained_in_silence(load: Any) -> None:
    """Each answer gets an empty thought that the generation prompt lacks: it is not the assistant's text."""
    text = TURNS.replace("{{ m.content", "{{ '<think></think>' if m.role == 'assistant' }}{{ m.content") + PROMPT
    with pytest.raises(ValueError, match=r"puts '<think></think>' before messages\[1\]"):
        load(text)


def test_inst_templates_train_the_blank_that_the_prompt_does_not_give(load: Any) -> None:
    """`<s>[INST] a? [/INST]` is the prompt; ` b. </s>` follows. Only user and assistant are known."""
    template = load(LLAMA2)
    assert template.span_source == "prefix"
    assert trained(template, [turn("user", " a? "), turn("assistant", " b. "), *CHAT[2:]]) == [" b. </s>", " d. </s>"]
    with pytest.raises(BadRow, match="no such role"):
        trained(template, [turn("system", "x"), *CHAT])


# ---- what is trained


# case: mask-08
@pytest.mark.parametrize("text", [TURNS + PROMPT, MARKED])
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
def test_train_on_says_whose_turns_are_trained(load: Any, text: str, train_on: Any, expected: list[str]) -> None:
    """Headers are not trained, whoever speaks."""
    messages = [turn("system", "s"), *CHAT[:2], turn("tool", "t"), *CHAT[2:]]
    assert trained(load(text), messages, train_on) == expected


@pytest.mark.parametrize("text", [TURNS + PROMPT, MARKED])
def test_a_messages_own_word_on_training_wins(load: Any, text: str) -> None:
    messages = [turn("user", "a", train=True), turn("assistant", "b", train=False), turn("assistant", "c")]
    template = load(text)
    first = [messages[0], messages[1], turn("user", "c"), turn("assistant", "d")]
    assert trained(template, first) == ["a<end>", "d<end>"]
    assert trained(template, [*first[:3], turn("assistant", "d", train=False)], "last") == ["a<end>"]
    with pytest.raises(BadRow, match="no loss tokens"):
        trained(template, [turn("user", "a"), turn("assistant", "b", train=False)])


def test_templates_never_see_whether_a_message_is_trained(load: Any) -> None:
    template = load("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.train }}<end>{% endfor %}" + PROMPT)
    assert "False" not in template.render([turn("user", "a", train=False)]).text


# case: template-10
def test_an_answer_goes_on_where_the_prompts_last_turn_ends(load: Any) -> None:
    """prompt ..., assistant "Sure: "; chosen "yes": one turn "Sure: yes", of which "yes<end>" is trained."""
    template = load(TURNS + PROMPT)
    start = turn("assistant", "Sure: ")
    pair = Preference([turn("user", "q"), start], turn("assistant", "yes"), turn("assistant", "no"))
    texts = [(segment.text, segment.branch) for segment in template.segment_pair(pair).segments]
    assert texts == [
        ("<user>q<end>\n<assistant>Sure: ", "shared"),
        ("yes<end>", "chosen"),
        ("no<end>", "rejected"),
    ]
    chat = [turn("user", "q"), {**start, "train": False}, turn("assistant", "yes")]
    assert trained(template, chat) == trained(template, chat, "last") == ["yes<end>"]


def test_a_given_start_may_be_trimmed_by_the_template(load: Any) -> None:
    """`  Sure: ` + `yes ` is printed as `Sure: yes`: 2 of the given 8 characters are gone, 6 are context."""
    template = load(TURNS.replace("m.content", "m.content | trim") + PROMPT)
    chat = [turn("user", "q"), turn("assistant", "  Sure: "), turn("assistant", "yes ")]
    assert trained(template, chat) == ["yes<end>"]
    assert context(template, chat) == ["<user>q<end>\n<assistant>Sure: "]


def test_tool_calls_that_the_template_prints_are_trained(load: Any) -> None:
    for text in (TURNS + PROMPT, MARKED):
        template = load(text.replace("{{ m.content }}<end>", "{{ m.content }}{{ m.tool_calls }}<end>"))
        call = turn("assistant", "I add.", tool_calls="add(1)")
        assert trained(template, [turn("user", "a"), call, *CHAT]) == ["I add.add(1)<end>", "b.<end>", "d.<end>"]


def test_tool_calls_are_trained_also_where_no_end_marker_shows_where_they_end(load: Any) -> None:
    template = load("{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}")
    call = turn("assistant", "I add.", tool_calls=" add(1)")
    assert trained(template, [turn("user", "a"), call, turn("user", "c"), CHAT[1]]) == ["I add. add(1)", "b."]


# ---- where contents stand


@pytest.mark.parametrize("text", [TURNS + PROMPT, MARKED, LLAMA2])
def test_contents_are_located_also_where_they_look_alike(load: Any, text: str) -> None:
    """Contents that equal headers, each other, or nothing: slices of the text are the (trimmed) contents, in order."""
    template = load(text)
    contents = ["<user>", "<user>", "", " x ", "\ue000\ue001", "\ue000"]
    messages = [turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)]
    for _ in range(2):  # the second time by what was kept of the first
        chat = template.render(messages)
        found = chat.contents
        assert found is not None
        trims = text == LLAMA2
        assert [chat.text[start:end] for start, end in found] == [c.strip() if trims else c for c in contents]
        assert found == sorted(found)


def test_a_kept_skeleton_is_not_believed_where_the_text_is_another(load: Any) -> None:
    """Contents that start with ! are printed in another way: no slice can be shown to be theirs."""
    text = TURNS.replace("{{ m.content }}", "{{ '(' if m.content.startswith('!') }}{{ m.content }}") + PROMPT
    template = load(text)
    plain, odd = [turn("user", "a"), turn("assistant", "b")], [turn("user", "!"), turn("assistant", "b")]
    assert template.render(plain).contents == [(6, 7), (24, 25)]
    assert template.render(odd).contents is None
    assert trained(template, odd) == ["b<end>"]


def test_the_last_answers_prompt_is_proven_on_each_row(load: Any) -> None:
    """The generation prompt changes once somebody writes /think, which no probe does: such rows are refused."""
    prompt = PROMPT.replace("<assistant>", "<assistant>{{ '<think>' if '/think' in messages[0].content }}")
    template = load(TURNS + prompt)
    assert trained(template, CHAT) == ["b.<end>", "d.<end>"]
    with pytest.raises(BadRow) as caught:
        trained(template, [turn("user", "a /think"), *CHAT[1:]])
    assert caught.value.reason == DropReason.REFUSED_BY_TEMPLATE


def test_layout_of_generation_blocks(load: Any) -> None:
    chat = load(MARKED).render(CHAT[:2])
    assert [chat.text[start:end] for start, end in chat.blocks] == ["b.<end>"]


def test_shapes_of_roles_say_what_is_trimmed_and_what_ends_a_turn(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    renderer = ChatTemplate(tiny_tokenizer, LLAMA2)
    user, assistant = renderer.shape("user"), renderer.shape("assistant")
    assert user is not None
    assert assistant is not None
    assert (user.fit(" a "), user.end) == ("a", " [/INST]")
    assert (assistant.fit(" a "), assistant.end) == ("a", " </s>")
    assert renderer.shape("system") is None
