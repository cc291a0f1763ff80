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
    for note in template.notes():
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
