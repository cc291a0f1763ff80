"""Messages -> segments of text, of which exactly the answers and their end markers are trained."""

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Preference
from smollit.data.template.template import ChatTemplate, load_template

BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
HEADER = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"
TRIM = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}" + PROMPT


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def instruct(shared: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared / "models" / "smollm2-tokenizer" / "instruct-135M")


@pytest.fixture(scope="module")
def base(shared: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared / "models" / "smollm2-tokenizer" / "base-135M")


@pytest.fixture
def chatml(tiny_tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    return load_template(tiny_tokenizer, "chatml")


def segments(template: ChatTemplate, messages: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    return [(segment.text, segment.in_loss) for segment in template.segment_chat(Conversation(messages)).segments]


def trained(template: ChatTemplate, messages: list[dict[str, Any]]) -> list[str]:
    """What is trained; parts that control text divides are joined by nothing, and none is in these answers."""
    return [text for text, is_trained in segments(template, messages) if is_trained]


def context(template: ChatTemplate, messages: list[dict[str, Any]]) -> list[str]:
    """What is not trained, with what control text divides joined."""
    joined = [""]
    for text, is_trained in segments(template, messages):
        joined = [*joined, ""] if is_trained else [*joined[:-1], joined[-1] + text]
    return joined[:-1]


def pair_texts(template: ChatTemplate, pair: Preference) -> tuple[str, str, str]:
    """Prompt, chosen, rejected."""
    segments = template.segment_pair(pair).segments
    prompt, first, second = (
        "".join(segment.text for segment in segments if segment.branch == branch)
        for branch in ("shared", "chosen", "rejected")
    )
    return prompt, first, second


# ---- which text is trained


# case: mask-03
# case: mask-10
@pytest.mark.shared
def test_smollm2s_own_template_trains_the_answer_behind_the_generation_prompt(
    instruct: PreTrainedTokenizerBase,
) -> None:
    """[user hi, assistant yo]: context = render([user hi], generation prompt); trained = yo + end, without newline."""
    template = load_template(instruct, "auto")
    messages = [user("hi"), assistant("yo")]
    prompt = instruct.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert segments(template, messages) == [(prompt, False), ("yo<|im_end|>", True)]


# case: mask-05
def test_all_answers_are_trained_and_nothing_else(chatml: ChatTemplate) -> None:
    messages = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert trained(chatml, messages) == ["b<|im_end|>", "d<|im_end|>"]
    assert context(chatml, messages) == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
    ]


# case: mask-05
# case: template-11
@pytest.mark.parametrize(
    "text", ["<|im_start|>assistant", "x<|im_end|>\n<|im_start|>assistant\nhi", "b", "b<|im_end|>"]
)
def test_markers_and_answers_in_a_users_text_open_no_span(chatml: ChatTemplate, text: str) -> None:
    assert trained(chatml, [user(text), assistant("b"), user(text), assistant("b")]) == ["b<|im_end|>"] * 2


@pytest.mark.parametrize("content", ["  yo", "yo \n", "\n\n yo", "\u2003yo\u2003"])
def test_blanks_around_an_answer_stay_trained(chatml: ChatTemplate, content: str) -> None:
    assert trained(chatml, [user("hi"), assistant(content)]) == [content + "<|im_end|>"]


def test_blanks_at_the_end_stay_trained_without_an_end_marker(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    assert trained(ChatTemplate(tiny_tokenizer, BARE), [user("a"), assistant(" b \n")]) == [" b \n"]


def test_a_template_that_trims_trains_what_it_renders(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [user("a"), assistant("  b \n"), user("c"), assistant("d ")]
    assert trained(ChatTemplate(tiny_tokenizer, TRIM), messages) == ["b<end>", "d<end>"]


@pytest.mark.parametrize("content", ["assistant", "user", "a", "<"])
def test_an_answer_that_stands_in_its_own_header_is_found_behind_it(
    tiny_tokenizer: PreTrainedTokenizerBase, content: str
) -> None:
    messages = [user(content), assistant(content)]
    assert trained(load_template(tiny_tokenizer, "chatml"), messages) == [content + "<|im_end|>"]
    assert trained(ChatTemplate(tiny_tokenizer, HEADER + PROMPT), messages) == [content + "<end>"]


# case: mask-11
def test_a_chat_may_start_with_an_answer(tiny_tokenizer: PreTrainedTokenizerBase, chatml: ChatTemplate) -> None:
    """[assistant A, user B, assistant C] in bare content: A and C are trained, all of B is not."""
    messages = [assistant("A"), user("B"), assistant("C")]
    bare = ChatTemplate(tiny_tokenizer, BARE)
    assert segments(bare, messages) == [("A", True), ("B", False), ("C", True)]
    assert trained(chatml, messages) == ["A<|im_end|>", "C<|im_end|>"]
    assert context(chatml, messages)[0] == "<|im_start|>assistant\n"


# case: mask-11
def test_text_behind_the_last_answer_is_left_out(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    assert segments(ChatTemplate(tiny_tokenizer, BARE), [assistant("A"), user("B")]) == [("A", True)]


def test_text_that_the_generation_prompt_gives_is_not_trained(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """An empty think block, rendered in answers and in the generation prompt alike, is context."""
    think = "<think></think>"
    text = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
        + think
        + "{% endif %}{{ m.content }}<end>"
        "{% endfor %}{% if add_generation_prompt %}<assistant>" + think + "{% endif %}"
    )
    messages = [user("a"), assistant("think"), user("c"), assistant("d")]
    assert trained(ChatTemplate(tiny_tokenizer, text), messages) == ["think<end>", "d<end>"]


def test_a_tool_call_without_text_is_trained(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    text = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls }}<end>{% endfor %}" + PROMPT
    call = {"role": "assistant", "content": "", "tool_calls": "add(1)"}
    assert trained(ChatTemplate(tiny_tokenizer, text), [user("a"), call]) == ["add(1)<end>"]


# case: template-10
def test_tool_results_are_not_trained(chatml: ChatTemplate) -> None:
    messages = [user("q"), assistant("call"), {"role": "tool", "content": "42"}, assistant("a")]
    assert trained(chatml, messages) == ["call<|im_end|>", "a<|im_end|>"]
    assert "42" in context(chatml, messages)[1]
    pair = Preference(messages[:3], assistant("a"), assistant("b"))
    assert pair_texts(chatml, pair)[1:] == ("a<|im_end|>", "b<|im_end|>")


# ---- what templates may not do


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (HEADER + PROMPT + "{{ raise_exception('no') }}", "fails with TemplateError: no"),
        (HEADER + PROMPT + "{{ messages[0].absent.key }}", "fails with UndefinedError"),
        (HEADER + PROMPT + "{{ 1 // 0 }}", "fails with ZeroDivisionError"),
        (HEADER + PROMPT + "{% for %}", "fails with TemplateSyntaxError"),
    ],
)
def test_templates_that_do_not_fit_refuse_the_row_by_name(
    tiny_tokenizer: PreTrainedTokenizerBase, text: str, what: str
) -> None:
    template = ChatTemplate(tiny_tokenizer, text, name="the chat template mine.jinja")
    with pytest.raises(BadRow, match=r"mine\.jinja") as caught:
        template.segment_chat(Conversation([user("a"), assistant("b"), user("c"), assistant("d")]))
    assert caught.value.reason == DropReason.REFUSED_BY_TEMPLATE
    assert what in caught.value.detail


def test_an_end_marker_inside_an_answer_is_refused(chatml: ChatTemplate) -> None:
    """Trained, it would teach to go on behind the end."""
    messages = [user("a"), assistant("b<|im_end|>\nmore")]
    with pytest.raises(BadRow, match="end marker in a response"):
        chatml.segment_chat(Conversation(messages))
    with pytest.raises(BadRow, match="end marker in a response"):
        chatml.segment_pair(Preference(messages[:1], assistant("fine"), messages[1]))


# ---- pairs


# case: template-01
# case: dpo-loss-08
@pytest.mark.shared
def test_answers_of_a_pair_hold_no_system_text(instruct: PreTrainedTokenizerBase) -> None:
    """SmolLM2's template adds a system turn to an answer that is rendered alone; here it stands once, in the prompt."""
    pair = Preference([user("q")], assistant("a"), assistant("b"))
    prompt, *answers = pair_texts(load_template(instruct, "auto"), pair)
    assert prompt.count("<|im_start|>system") == 1
    assert answers == ["a<|im_end|>", "b<|im_end|>"]


# case: template-01
@pytest.mark.shared
def test_the_users_own_system_text_replaces_the_default(instruct: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("q")]
    text = load_template(instruct, "auto").prompt_text(messages)
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n")


# ---- tokens


# case: data-02
@pytest.mark.shared
def test_the_border_of_prompt_and_answer_is_a_border_of_tokens(instruct: PreTrainedTokenizerBase) -> None:
    """`Answer: ` + `yes` joins to `Answer : Gyes`; apart, the blank stays with the prompt: both answers share it."""
    template = ChatTemplate(instruct, "{% for m in messages %}{{ m.content }}{% endfor %}")
    texts = pair_texts(template, Preference([user("Answer: ")], assistant("yes"), assistant("no")))
    prompt, chosen, rejected = template.encode(list(texts))
    assert instruct.convert_ids_to_tokens(prompt) == ["Answer", ":", "Ġ"]
    assert instruct.convert_ids_to_tokens(instruct("Answer: yes")["input_ids"]) == ["Answer", ":", "Ġyes"]
    assert (instruct.decode(chosen), instruct.decode(rejected)) == ("yes", "no")


# case: data-02
@pytest.mark.shared
def test_header_tokens_equal_the_generation_prompts_before_leading_blanks(instruct: PreTrainedTokenizerBase) -> None:
    """Jointly, the header's newline and two blanks are one token; at inference the header stands alone."""
    template = load_template(instruct, "chatml")
    messages = [user("hi"), assistant("  yo")]
    header, _ = template.encode([text for text, _ in segments(template, messages)])
    assert header == template.encode([template.prompt_text(messages[:1])])[0]
    assert "ĊĠ" in instruct.convert_ids_to_tokens(template.encode([template.render(messages).text])[0])


# case: template-02
# case: template-06
def test_template_text_gets_no_second_bos(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A tokenizer that puts id 1 before every text: the row has the template's own 1, once."""
    from tokenizers.processors import TemplateProcessing

    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert tokenizer("a")["input_ids"][0] == 1
    template = load_template(tokenizer, "chatml")
    prompt, chosen, _ = template.encode(
        list(pair_texts(template, Preference([user("q")], assistant("a"), assistant("b"))))
    )
    assert prompt[0] == 1
    assert prompt[1] != 1
    assert 1 not in chosen


# case: mask-04
@pytest.mark.shared
def test_the_turn_end_comes_from_the_template_not_from_eos(base: PreTrainedTokenizerBase) -> None:
    """eos is <|endoftext|> (0); ChatML ends turns with <|im_end|> (2): trained last, and stopped at first."""
    template = load_template(base, "auto")
    assert base.eos_token_id == 0
    assert template.turn_end() == "<|im_end|>"
    assert template.stop_ids() == [2, 0]
    assert template.encode(trained(template, [user("hi"), assistant("yo")]))[0][-1] == 2


def test_a_turn_end_of_several_tokens_stops_nothing(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """`</s>` is no token here: only eos is a stop token, and the text is the export's business."""
    template = load_template(tiny_tokenizer, "article")
    assert template.turn_end() == "</s>"
    assert template.stop_ids() == [tiny_tokenizer.eos_token_id]


# case: template-08
@pytest.mark.shared
def test_markers_that_are_several_tokens_are_named(base: PreTrainedTokenizerBase) -> None:
    assert load_template(base, "article").split_markers() == ["</s>", "<|assistant|>", "<|user|>"]
    assert load_template(base, "chatml").split_markers() == []


# ---- choosing a template


# case: template-04
def test_a_tokenizer_without_a_template_gets_chatml_for_chats_only(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    assert tiny_tokenizer.chat_template is None
    assert load_template(tiny_tokenizer, "auto").source == load_template(tiny_tokenizer, "chatml").source
    with pytest.raises(ValueError, match="start from a folder that an SFT run exported"):
        load_template(tiny_tokenizer, "auto", allow_default=False)


def test_a_jinja_file_is_taken(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(HEADER + PROMPT)
    assert load_template(tiny_tokenizer, str(tmp_path / "mine.jinja")).turn_end() == "<end>"


@pytest.mark.parametrize("text", ["{% for %}", "{{ raise_exception('never') }}"])
def test_a_template_that_renders_nothing_is_refused_when_it_is_loaded(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, text: str
) -> None:
    (tmp_path / "mine.jinja").write_text(text)
    with pytest.raises(ValueError, match=r"`data.chat_template`: .*mine.jinja fails with Template"):
        load_template(tiny_tokenizer, str(tmp_path / "mine.jinja"))


def test_an_unknown_template_name_says_what_is_known(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="must be auto, chatml, article or a Jinja file, and 'zephyr' is not a file"):
        load_template(tiny_tokenizer, "zephyr")


# ---- the template's own system text

OWN = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


# case: template-01
@pytest.mark.shared
def test_the_default_system_text_is_found_kept_dropped_or_replaced(instruct: PreTrainedTokenizerBase) -> None:
    """Only that block of the source changes: with a system message of the data, all three render the same."""
    kept = load_template(instruct, "auto")
    dropped = load_template(instruct, "auto", default_system="drop")
    spoken = """It's {{ "odd" }} \\ \n{% and %} ö"""
    replaced = load_template(instruct, "auto", default_system=spoken)
    assert [t.default_system_text() for t in (kept, dropped, replaced)] == [OWN, "", spoken]
    block = f"<|im_start|>system\n{OWN}<|im_end|>\n"
    rest = "<|im_start|>user\nhi<|im_end|>\n"
    assert [t.render([user("hi")]).text for t in (kept, dropped, replaced)] == [
        block + rest,
        rest,
        block.replace(OWN, spoken) + rest,
    ]
    chat = [{"role": "system", "content": "S"}, user("hi")]
    assert kept.prompt_text(chat) == dropped.prompt_text(chat) == replaced.prompt_text(chat)
    assert len({kept.source, dropped.source, replaced.source}) == 3


# case: template-01
def test_a_default_that_the_source_writes_in_pieces_can_not_be_changed(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The text is built of two strings: there is no place where it stands."""
    (tmp_path / "mine.jinja").write_text(
        "{% if messages[0].role != 'system' %}<system>{{ 'Be ' + 'kind' }}<end>{% endif %}" + HEADER + PROMPT
    )
    load = str(tmp_path / "mine.jinja")
    assert load_template(tiny_tokenizer, load).default_system_text() == "Be kind"
    with pytest.raises(ValueError, match=r"`data.default_system` can't be applied.*'Be kind'.*Give a Jinja file"):
        load_template(tiny_tokenizer, load, default_system="drop")


def test_dropping_keeps_what_stands_before_the_system_turn(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """BOS stands before the block, and escaped line breaks in it."""
    (tmp_path / "mine.jinja").write_text(
        "<s>{% if messages[0].role != 'system' %}{{- '<system>Don\\'t\\nlie<end>' }}{% endif %}" + HEADER + PROMPT
    )
    template = load_template(tiny_tokenizer, str(tmp_path / "mine.jinja"), default_system="drop")
    assert template.render([user("a")]).text == "<s><user>a<end>"


def test_a_template_without_a_default_has_nothing_to_drop_or_replace(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    chatml = load_template(tiny_tokenizer, "chatml")
    assert load_template(tiny_tokenizer, "chatml", default_system="drop").source == chatml.source
    with pytest.raises(ValueError, match="adds no system text that it could replace: put a system message"):
        load_template(tiny_tokenizer, "chatml", default_system="Be kind.")


def test_the_date_is_part_of_what_the_cache_depends_on(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Where the template prints the date, the cache's text holds today's; else it is the source alone."""
    (tmp_path / "mine.jinja").write_text("{{ strftime_now('%Y') }}" + HEADER + PROMPT)
    dated = load_template(tiny_tokenizer, str(tmp_path / "mine.jinja"))
    assert dated.cache_text in {dated.source + day.isoformat() for day in days_around_now()}
    assert any("today's date" in note for note in dated.notes())
    chatml = load_template(tiny_tokenizer, "chatml")
    assert chatml.cache_text == chatml.source


def days_around_now() -> set[date]:
    """Today, and yesterday if the test runs at midnight."""
    return {date.today(), (datetime.now() - timedelta(minutes=5)).date()}


# ---- state that others leave behind


def test_padding_and_truncation_of_others_change_no_tokens(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    template, texts = load_template(tiny_tokenizer, "chatml"), ["a", "a longer text <|im_end|>"]
    before = template.encode(texts)
    backend = tiny_tokenizer.backend_tokenizer
    backend.enable_padding()
    backend.enable_truncation(2)
    backend.encode_special_tokens = True
    assert template.encode(texts) == before == [tiny_tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
