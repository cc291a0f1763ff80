"""load_template: which template is used, which is refused, and what happens to the system text that it adds."""

import copy
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from smollit.data.template.notes import log_template, notes
from smollit.data.template.template import ChatTemplate, load_template
from tests.data.conftest import user

Load = Callable[..., ChatTemplate]
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>"
    "{% endgeneration %}{% else %}{{ m.content }}<end>{% endif %}{% endfor %}"
)


# ---- which template


# case: template-04
def test_a_tokenizer_without_a_template_gets_chatml_for_chats_only(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    assert tiny_tokenizer.chat_template is None
    assert load_template(tiny_tokenizer, "auto").source == load_template(tiny_tokenizer, "chatml").source
    with pytest.raises(ValueError, match="start from a folder that an SFT run exported"):
        load_template(tiny_tokenizer, "auto", allow_default=False)


def test_a_tokenizer_with_several_templates(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """`default` unless another one is named; without it, the names are said."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = {"default": TURNS + PROMPT, "tool_use": "T" + TURNS + PROMPT}
    assert load_template(tokenizer, "auto").source == TURNS + PROMPT
    assert load_template(tokenizer, "tool_use").source == "T" + TURNS + PROMPT
    del tokenizer.chat_template["default"]
    with pytest.raises(ValueError, match=r"has the chat templates tool_use, .* `data.chat_template` to one"):
        load_template(tokenizer, "auto")


def test_a_byte_order_mark_is_no_part_of_a_template(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(TURNS + PROMPT, encoding="utf-8-sig")
    assert load_template(tiny_tokenizer, str(tmp_path / "mine.jinja")).source == TURNS + PROMPT


def test_a_template_in_latin_1_is_named(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_bytes("{# ü #}".encode("latin1") + TURNS.encode())
    with pytest.raises(ValueError, match=r"mine\.jinja is not UTF-8 \(byte 3\): convert it"):
        load_template(tiny_tokenizer, str(tmp_path / "mine.jinja"))


def test_a_jinja_file_is_used_and_an_unknown_name_says_what_is_known(
    load: Load, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert load(TURNS + PROMPT).turn_end() == "<end>"
    with pytest.raises(ValueError, match="must be auto, chatml, article or a Jinja file, and 'zephyr' is not a file"):
        load_template(tiny_tokenizer, "zephyr")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for %}", "fails with TemplateSyntaxError"),
        ("{{ raise_exception('never') }}", "fails with TemplateError: never"),
        (TURNS, r"puts '<assistant>' before messages\[1\], but has no generation prompt"),
        (TURNS + "{{ messages | length }}" + PROMPT, "puts something else before"),
        (TURNS.replace("m.content", "m.content | upper") + PROMPT, "does not print the text of an assistant turn"),
        (TURNS + PROMPT.replace("<assistant>", "<assistant>Sure: "), "puts something else before"),
        # The blocks are right, but at inference other text would stand before the turn.
        (MARKED + PROMPT.replace("<assistant>", "<assistant>Sure: "), r"something else before messages\[1\].*, and "),
        (MARKED, r"puts something else before messages\[1\].*, and "),
        (
            TURNS.replace("{{ m.content", "{{ 'he says ' if m.role == 'assistant' }}{{ m.content") + PROMPT,
            "puts 'he says'",
        ),
    ],
)
def test_a_template_without_sound_loss_spans_is_refused_with_the_reasons(load: Load, source: str, reason: str) -> None:
    """Of markers and prefixes, where it has both."""
    with pytest.raises(ValueError, match=r"`data\.chat_template`: .*mine\.jinja .*" + reason) as caught:
        load(source)
    assert "set `data.chat_template` to chatml or another file" in str(caught.value)


def test_the_date_is_part_of_what_the_cache_depends_on(load: Load, chatml: ChatTemplate) -> None:
    """Where the template prints the date, the cache's text holds today's; else it is the source alone."""
    dated = load("{{ strftime_now('%Y') }}" + TURNS + PROMPT)
    days = {date.today(), (datetime.now() - timedelta(minutes=5)).date()}  # two at midnight
    assert dated.cache_text in {dated.source + day.isoformat() for day in days}
    assert any("today's date" in note for note in notes(dated))
    assert chatml.cache_text == chatml.source


def test_a_template_without_an_end_is_warned_of(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    """No loss span ends with a token that stops generation: with eos after the turn, they do."""
    for end in ("", "{{ eos_token }}"):
        caplog.clear()
        log_template(load(TURNS.replace("<end>", end) + PROMPT), is_default=False)
        assert ("the model would not learn to stop" in caplog.text) == (end == "")


# ---- the system text that a template adds


def test_dropping_keeps_what_stands_before_the_system_turn(load: Load) -> None:
    """BOS stands before the turn, and an escaped quote and line break in it."""
    own = "{% if messages[0].role != 'system' %}{{- '<system>Don\\'t\\nlie<end>' }}{% endif %}"
    template = load("<s>" + own + TURNS + PROMPT, default_system="drop")
    assert template.render([user("a")]).text == "<s><user>a<end>"


# case: template-01
def test_a_system_text_that_can_not_be_changed_is_an_error(load: Load, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """The source writes it as two strings; or there is none to replace (but to drop none is fine)."""
    pieces = "{% if messages[0].role != 'system' %}<system>{{ 'Be ' + 'kind' }}<end>{% endif %}" + TURNS + PROMPT
    assert load(pieces).default_system_text() == "Be kind"
    with pytest.raises(ValueError, match=r"`data.default_system` can't be applied.*'Be kind'.*Give a Jinja file"):
        load(pieces, default_system="drop")
    plain = load_template(tiny_tokenizer, "chatml", default_system="drop")
    assert plain.source == load_template(tiny_tokenizer, "chatml").source
    with pytest.raises(ValueError, match="adds no system text that it could replace: put a system message"):
        load_template(tiny_tokenizer, "chatml", default_system="Be kind.")
