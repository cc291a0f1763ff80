"""What a user is told of the chat template, once per run."""

import logging

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smollit.data.chat import ChatTemplate

log = logging.getLogger(__name__)


@rank_zero_only
def describe_template(template: ChatTemplate, is_default: bool) -> None:
    """Say what is not as a user may think."""
    if is_default:
        log.info("the tokenizer has no chat template: ChatML is used")
    for note in template.notes():
        log.info("%s", note)
    eos = template.tokenizer.eos_token
    if eos and template.turn_end() and eos not in template.turn_end():
        log.info("answers end with %s, not with the tokenizer's eos %s: both stop generation", template.turn_end(), eos)
    split = template.split_markers()
    if split:
        log.warning(
            "the chat template's markers %s are several tokens each for this tokenizer: a model of this size"
            " learns them badly. `chat_template: chatml` has single tokens",
            ", ".join(split),
        )
