"""TemplatedDataModule: the tokenizer and the chat template of the rows. tokenized.py makes examples with them."""

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from smollit.batch import NamedModel
from smollit.data.formats.types import Kind
from smollit.data.rows import RowsDataModule
from smollit.data.sources.mixture import Part
from smollit.data.template.notes import log_template
from smollit.data.template.template import ChatTemplate, load_template
from smollit.data.template.tokenize import load_tokenizer

TEMPLATE_SETTINGS = ("tokenizer_name", "chat_template", "add_tokens", "default_system", "chat_template_kwargs")


class TemplatedDataModule(RowsDataModule):
    """Splits of data sets with the chat template that renders their rows, and its tokenizer.

    Args:
        dataset: Hub id, a folder laid out as on the Hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), a glob, or a URL; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        tokenizer_name: Hub id or folder of the tokenizer; null takes the model's.
        chat_template: `auto` (the tokenizer's own, else ChatML), `chatml`, `article`, one of several templates of the
            tokenizer by its name, or the path of a Jinja file.
        add_tokens: Add the template's markers to the tokenizer as single tokens where they are not. The model gets
            embeddings for them, initialized with the mean of all others.
        default_system: System text that the template adds by default: `keep`, `drop`, or a text that replaces it.
        chat_template_kwargs: Switches of the chat template for all rows, such as {enable_thinking: false}; those in a
            row's column `chat_template_kwargs` override them. They become defaults of the exported template.
        **options: All other options of RowsDataModule.
    """

    kind: ClassVar[Kind] = "chat"

    def __init__(
        self,
        dataset: str | list[Part],
        *,
        tokenizer_name: str | None = None,
        chat_template: str = "auto",
        add_tokens: bool = False,
        default_system: str = "keep",
        chat_template_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, **options)
        if not isinstance(tokenizer_name, str | Path | None):
            raise ValueError(
                f"`data.tokenizer_name` must be a name or a folder, got a {type(tokenizer_name).__name__}: save it with"
                " `save_pretrained`, and give that folder"
            )
        self.tokenizer_name = tokenizer_name and os.path.expanduser(tokenizer_name)
        self.chat_template = chat_template
        self.add_tokens = add_tokens
        self.default_system = default_system
        self.chat_template_kwargs = chat_template_kwargs
        self._template: ChatTemplate | None = None
        self._is_the_models = False  # whether the tokenizer is that of the model, since no other is named

    @property
    def template(self) -> ChatTemplate:
        """The chat template with its tokenizer, loaded when first needed."""
        if self._template is None:
            self._is_the_models = self.tokenizer_name is None
            self.tokenizer_name = self.tokenizer_name or self._name_of_model()
            self._template = self._load(self.tokenizer_name)
            is_default = self.chat_template == "auto" and not self._template.tokenizer.chat_template
            log_template(self._template, is_default=is_default)
        return self._template

    def _load(self, name: str) -> ChatTemplate:
        """The chat template with the tokenizer of this name."""
        tokenizer = load_tokenizer(name)
        load = partial(
            load_template,
            tokenizer,
            self.chat_template,
            allow_default=self.kind == "chat",
            default_system=self.default_system,
            switches=self.chat_template_kwargs,
        )
        template = load()
        if self.add_tokens and tokenizer.add_tokens(template.split_markers(), special_tokens=True):
            return load()  # the tokenizer has changed since the template was loaded
        return template

    def check_model(self) -> None:
        """Refuse to go on with the examples of an earlier model, if this one has another tokenizer or template.

        Raises:
            ValueError: If the tokenizer was that of the earlier model, by default.
        """
        before = self._template
        if before is None or not self._is_the_models or self.trainer is None:
            return
        name = self._name_of_model()
        if name == self.tokenizer_name:
            return
        now = self._load(name)
        if (now.tokenizer_hash, now.source) != (before.tokenizer_hash, before.source):
            raise ValueError(
                f"this data module has the tokenizer and the template of {self.tokenizer_name}, and those of {name} are"
                " others: make a new data module for another model, or set `tokenizer_name`"
            )

    def _name_of_model(self) -> str:
        """The model of the trainer that the data module is attached to: its folder holds the tokenizer too."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        if not isinstance(module, NamedModel):
            raise ValueError("`data.tokenizer_name` must be set when the data module is used without a trainer")
        return module.model_name

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that the tokenizer can give."""
        return max(self.template.tokenizer.get_vocab().values(), default=-1) + 1  # there may be gaps

    def stop_ids(self) -> list[int]:
        """Tokens that end a response."""
        return self.template.stop_ids()
