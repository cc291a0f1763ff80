"""What a user is told, once over all ranks: of the template, of each split, of packing."""

import logging

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smollit.data.batching.packing import fill_rate
from smollit.data.batching.sampler import BatchSampler
from smollit.data.encoding.report import Report
from smollit.data.template.template import ChatTemplate

log = logging.getLogger("smollit.data")


@rank_zero_only
def say(line: str) -> None:
    """Log a line."""
    log.info("%s", line)


@rank_zero_only
def tell(report: Report, label: str) -> None:
    """Say what became of a split's rows."""
    log.info("%s", report.summary(label))
    for line in report.warnings(label):
        log.warning("%s", line)


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


def tell_packing(sampler: BatchSampler, packing: str) -> None:
    """Say whether rows are packed, and how full they are."""
    if packing == "off":
        return
    capacity = sampler.order.pack_length
    if not capacity:
        say("packing: off (auto), since this machine has no GPU")
        return
    rows = sampler.rows()
    say(
        f"packing: on, {sum(map(len, rows)):,} examples in {len(rows):,} rows of {capacity:,} positions,"
        f" fill rate {fill_rate(sampler.lengths, rows, capacity):.1%}"
    )


@rank_zero_only
def tell_same_rows() -> None:
    """Warn that validation says nothing about new rows."""
    log.warning(
        "validation uses the rows of training: of one data set, set e.g. `data.train_split` to train[:95%] and"
        " `data.val_split` to train[95%:], or `data.val_split` to null"
    )
