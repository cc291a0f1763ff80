"""What a run logs about its chat template."""

import logging

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smollit.data.template.template import ChatTemplate

log = logging.getLogger("smollit.data")


@rank_zero_only
def log_template(template: ChatTemplate, *, is_default: bool) -> None:
    """Log properties of the template that a user may not expect."""
    if is_default:
        log.info("the tokenizer has no chat template: ChatML is used")
    for note in notes(template):
        log.info("%s", note)
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
    how = "its generation markers" if template.span_source == "markers" else "rendering the turns before them"
    lines = [f"{template.name}: assistant turns are found by {how}, and verified on every row"]
    if template.default_system_text():
        lines.append(
            f"{template.name} adds the system text {template.default_system_text()!r} to chats without one:"
            " `data.default_system` can drop or replace it"
        )
    if template.cache_text != template.source:
        lines.append(f"{template.name} prints today's date: the data is tokenized again each day")
    return lines
