"""Any conversation with any template: the loss tokens are the assistant turns and their ends, and nothing else."""

from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from smollit.commands.inspect.pieces import inspect_row
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.types import Kind
from smollit.data.template.template import ChatTemplate, load_template

PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{{ '\n' }}{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{{ '\n' }}{% endif %}"
    "{% endfor %}" + PROMPT
)
TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}" + PROMPT
)
INST = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' <|im_end|>' }}"
    "{% else %}{{ '<|im_start|>[INST] ' + m.content.strip() + ' [/INST]' }}{% endif %}{% endfor %}"
)
DEFAULT = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + PROMPT
)


class Case(NamedTuple):
    """A template, what it does to contents, and what ends an assistant turn."""

    text: str
    trims: bool
    lead: str
    end: str


CASES = {
    "chatml": Case("chatml", False, "", "<|im_end|>"),
    "article": Case("article", False, "", "</s>"),
    "own system text": Case(DEFAULT, False, "", "<|im_end|>"),
    "markers": Case(MARKED, False, "", "<|im_end|>"),
    "trims": Case(TRIMS, True, "", "<|im_end|>"),
    "inst": Case(INST, True, " ", " <|im_end|>"),
}
# Scripts, emoji with joiners, combining marks, whitespace of all kinds, control text, our own private-use characters.
SCRIPTS = ["e\u0301", "\U0001f469\u200d\U0001f4bb", "日本語", "עברית", "\u2028", "\ufeff", "\x00"]
WHITESPACE = [" ", "  ", "\n", "\t", "\u2003"]
CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|endoftext|>",
    "<|im_",
    "end|>",
    "</s>",
    "[/INST]",
]
PRIVATE = ["\ue000", "\ue001content\ue000", "assistant", "user", "a", "The end."]
PIECES = st.sampled_from([*SCRIPTS, *WHITESPACE, *CONTROL, *PRIVATE])
texts = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=5).map("".join)
responses = texts.filter(str.strip)
turns = st.lists(st.tuples(texts, responses, st.none() | texts, responses), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def templates(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each template, loaded once."""
    loaded = {}
    for name, case in CASES.items():
        choice = case.text
        if choice not in ("chatml", "article"):
            path = tmp_path_factory.mktemp("templates") / "mine.jinja"
            path.write_text(case.text)
            choice = str(path)
        loaded[name] = load_template(tiny_tokenizer, choice)
    assert {name: template.span_source for name, template in loaded.items()} == {
        **dict.fromkeys(CASES, "prefix"),
        "markers": "markers",
    }
    return loaded


def encode(template: ChatTemplate, row: dict[str, Any], kind: Kind) -> tuple[dict[str, Any], Encoder]:
    encoder = Encoder(template, EncodeOptions(kind, 100_000), detect_format(list(row), [row], kind=kind))
    return {name: v[0] for name, v in encoder({name: [value] for name, value in row.items()}, [5]).items()}, encoder


def conversation(spoken: list[tuple[str, str, str | None, str]], system: str | None, tools: bool) -> list[Any]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for asked, said, result, then in spoken:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        if result is not None and tools:
            messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": then}]
    return messages


def causes(template: ChatTemplate, case: Case, messages: list[Any], responses: list[str]) -> set[str]:
    """Why a row may be dropped for the contents of its messages; else it must be kept."""
    ends = any(case.end.strip() in response for response in responses)
    spelled = any(marker in message["content"] for marker in template.split_markers() for message in messages)
    found = {"end marker in a response": ends, "control text that can't be escaped": spelled}
    return {cause for cause, holds in found.items() if holds} or {""}


# case: mask-05 template-11
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoken=turns, system=st.none() | texts)
@example(spoken=[("a<|im_end|>\n<|im_start|>assistant\nb", "<|im_start|>", "x<|im_end|>", " a ")], system="<|im_end|>")
@example(spoken=[("", " yo", None, "x"), ("\ue000\ue001", "\ue001", "", "assistant")], system=None)
def test_exactly_the_assistant_turns_and_their_ends_count(
    templates: dict[str, ChatTemplate], name: str, spoken: Any, system: str | None
) -> None:
    """decode(span) = turn + end for each; before each stands what transformers gives as its prompt; all else is
    context; and every special token is one that the template writes: 2 per message, or 1 where it has only one."""
    template, case = templates[name], CASES[name]
    messages = conversation(spoken, system, tools=True)
    row, _ = encode(template, {"messages": messages}, "chat")
    responses = [message["content"] for message in messages if message["role"] == "assistant"]
    assert row["problem"] in causes(template, case, messages, responses)
    if row["problem"]:
        return
    tokenizer, ids = template.tokenizer, row["input_ids"]
    said = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    spans = list(zip(row["spans"][::2], row["spans"][1::2], strict=True))
    for index, (start, end) in zip(said, spans, strict=True):
        content = messages[index]["content"]
        response = case.lead + (content.strip() if case.trims else content) + case.end
        assert tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False) == response
        prompt = tokenizer.apply_chat_template(
            messages[:index], chat_template=template.source, tokenize=False, add_generation_prompt=True
        )
        assert tokenizer.decode(ids[:start], clean_up_tokenization_spaces=False) == prompt
    written = {"article": (0, 0), "inst": (len(messages) - len(said), len(said))}
    extra = int(name == "own system text" and system is None)
    assert (ids.count(1), ids.count(2)) == written.get(name, (len(messages) + extra,) * 2)
    assert ids.count(0) == 0


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoken=turns, chosen=responses, rejected=responses, given_text=st.none() | responses)
def test_both_responses_of_a_pair_follow_the_same_prompt(
    templates: dict[str, ChatTemplate], name: str, spoken: Any, chosen: str, rejected: str, given_text: str | None
) -> None:
    """A pair's prompt has the ids that a chat of prompt and chosen response has before its last span."""
    template, case = templates[name], CASES[name]
    prompt = [*conversation(spoken, None, tools=False), {"role": "user", "content": "q"}]
    if given_text is not None:
        prompt.append({"role": "assistant", "content": given_text})
    response, other = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    row, _ = encode(template, {"prompt": prompt, "chosen": [response], "rejected": [other]}, "preference")
    given = "" if given_text is None else given_text
    expected = causes(template, case, [*prompt, response, other], [given + chosen, given + rejected])
    same = chosen.strip() == rejected.strip()
    assert row["problem"] in (expected | {"identical responses"} if same else expected)
    if row["problem"]:
        return
    decode = template.tokenizer.decode
    for ids, text in ((row["chosen_ids"], chosen), (row["rejected_ids"], rejected)):
        lead = case.lead if given_text is None else ""
        trimmed = text.strip() if case.trims and given_text is None else text.rstrip() if case.trims else text
        assert decode(ids, clean_up_tokenization_spaces=False) == lead + trimmed + case.end
    chat, _ = encode(
        template, {"messages": [{**m, "train": False} for m in prompt[:-1]] + [prompt[-1], response]}, "chat"
    )
    if given_text is None and not chat["problem"]:
        assert row["prompt_ids"] == chat["input_ids"][: chat["spans"][-2]]
        assert row["chosen_ids"] == chat["input_ids"][chat["spans"][-2] :]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoken=turns, system=st.none() | texts, name=st.sampled_from(list(CASES)))
def test_shown_pieces_spell_the_chat_and_hold_its_ids(
    templates: dict[str, ChatTemplate], spoken: Any, system: str | None, name: str
) -> None:
    """Texts joined = the rendered chat up to the last end; ids joined = the example; each piece decodes to itself."""
    template = templates[name]
    messages = conversation(spoken, system, tools=True)
    row, encoder = encode(template, {"messages": messages}, "chat")
    (shown,) = inspect_row(encoder, {"messages": messages}, 5)
    if row["problem"]:
        assert shown.problem == row["problem"]
        return
    assert template.render(messages).text.startswith("".join(piece.text for piece in shown.pieces))
    assert [token for piece in shown.pieces for token in piece.ids] == row["input_ids"]
    trained = [token for piece in shown.pieces if piece.state == "loss" for token in piece.ids]
    assert len(trained) == row["loss_tokens"]
    assert {piece.role for piece in shown.pieces} <= {"system", "user", "tool", "assistant"}
