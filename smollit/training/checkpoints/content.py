"""What a run trains on, by content: a resume compares it, since another file may lie under the same path."""

import hashlib
import json
import logging

from lightning.pytorch import Trainer

from smollit.data.encoding.part import EncodedPart
from smollit.data.tokenized import TokenizedDataModule
from smollit.training.steps import data_module

log = logging.getLogger(__name__)
Content = dict[str, str]


def content(trainer: Trainer) -> Content:
    """A hash for each setting that names something outside the config; empty for data modules of other kinds.

    Of streamed files only names and sizes count, since reading them takes as long as the run. Of a streamed data set of
    the Hub nothing does.
    """
    data = data_module(trainer)
    if not isinstance(data, TokenizedDataModule):
        return {}
    training = [part for parts in data.parts("train").values() for part in parts]
    validation = [part for parts in data.parts("val").values() for part in parts]
    template = data.template
    found = {
        "data.dataset": hashed([_rows(part, data.streaming) for part in training]),
        "data.tokenizer_name": template.tokenizer_hash,
        "data.chat_template": hashed(template.source),
    }
    converters = [part.encoder.format.convert.key for part in training if part.encoder.format.convert]
    if converters:
        found["data.convert"] = hashed(converters)
    if validation:
        found["data.val_split"] = hashed([part.source.fingerprint for part in validation])
    return found


def check_content(saved: Content, now: Content, *, force: bool) -> None:
    """Refuse to resume on other contents than the run began with; other validation rows are only said.

    Raises:
        ValueError: If rows, their order, tokenizer, template or converter have changed, unless forced.
    """
    changed = [name for name in now if saved.get(name, now[name]) != now[name]]
    if "data.val_split" in changed:
        changed.remove("data.val_split")
        log.warning("the content of `data.val_split` has changed: earlier validations were on other rows")
    if not changed:
        return
    names = ", ".join(f"`{name}`" for name in changed)
    if force:
        log.warning("the content of %s is not what the run began with: `trainer.force_resume`", names)
        return
    raise ValueError(
        f"the content of {names} is not what the run began with, under the same name: a resumed run would not train on"
        " the rows that are left. Restore it, start a new run in another `trainer.default_root_dir`, or set"
        " `trainer.force_resume: true`"
    )


def hashed(value: object) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _rows(part: EncodedPart, streaming: bool) -> object:
    if not streaming:
        return part.source.fingerprint
    return [(file.name, file.stat().st_size) for file in part.source.files]
