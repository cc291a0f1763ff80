"""What a run logs about its chat template."""

import logging

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smollit.data.formats.drop_reason import BadRow
from smollit.data.template.loss_spans import SpanSource
from smollit.data.template.probe import probe_chats
from smollit.data.template.template import ChatTemplate

log = logging.getLogger("smollit.data")
HOW: dict[SpanSource, str] = {
    "markers": "its generation markers",
    "prefix": "rendering the turns before them",
    "turns": "their places in the whole chat, from which its prompts differ in known ways",
    "last": "rendering the turns before the last one",
}


@rank_zero_only
def log_template(template: ChatTemplate, *, is_default: bool) -> None:
    """Log properties of the template that a user may not expect."""
    if is_default:
        log.info("the tokenizer has no chat template: ChatML is used")
    for note in notes(template):
        log.info("%s", note)
    for problem in problems(template):
        log.warning("%s", problem)
    eos, end = template.tokenizer.eos_token, template.turn_end()
    if eos and end and eos not in end:
        log.info("assistant turns end with %s, not with the tokenizer's eos %s: both stop generation", end, eos)
    split = template.split_markers()
    if split:
        log.warning(
            "the chat template's markers %s are several tokens each for this tokenizer, which small models learn"
            " poorly. Set `data.chat_template` to chatml, whose markers are single tokens",
            ", ".join(split),
        )


def notes(template: ChatTemplate) -> list[str]:
    """How loss spans are found in the template, and what it adds to chats."""
    lines = [f"{template.name}: assistant turns are found by {HOW[template.span_source]}, and verified on every row"]
    if template.span_source == "last":
        lines.append(
            f"{template.name} prints turns in another way once more turns follow: only the last turn of a chat counts"
            " in the loss, as with `data.train_on: last`"
        )
    earlier, last = leads(template)
    if earlier != last:
        lines.append(
            f"{template.name} writes {last!r} before the text of a last turn, which the model must write too, and"
            f" {earlier!r} before that of earlier turns: `data.train_on: last` leaves earlier turns out of the loss"
        )
    if template.default_system_text():
        lines.append(
            f"{template.name} adds the system text {template.default_system_text()!r} to chats without one:"
            " `data.default_system` can drop or replace it"
        )
    if template.cache_text != template.source:
        lines.append(f"{template.name} prints today's date: the data is tokenized again each day")
    return lines


def problems(template: ChatTemplate) -> list[str]:
    """What no row can make good: turns without an end."""
    if template.turn_end():
        return []
    return [
        f"{template.name} ends a chat without an end marker of the assistant turn, so no loss span ends with a token"
        " that stops generation: the model would not learn to stop. Print one there, such as {{ eos_token }}, or set"
        " `data.chat_template` to chatml"
    ]


def leads(template: ChatTemplate) -> tuple[str, str]:
    """What a loss span holds before the text of its turn: of an earlier turn, and of the last one."""
    try:
        chat = template.render(probe_chats()[1])
        spans = template.loss_spans(chat)
    except BadRow:  # the template knows chats of one turn only
        return "", ""
    texts = [chat.text[start:end].partition(chat.messages[index]["content"])[0] for start, end, index in spans]
    return texts[0], texts[-1]
