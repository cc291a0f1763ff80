"""Speaker: a model that responds to a conversation, piece by piece."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TextIteratorStreamer,
)

from smollit.commands.certificate import read_certificate
from smollit.errors import first_line
from smollit.models.generation import Finish, finish_of, positions_of
from smollit.models.pretrained import load_config, load_pretrained, no_progress_bar
from smollit.paths import check_folder

Message = dict[str, str]


@dataclass
class Sampling:
    """How responses are drawn.

    Args:
        temperature: Sampling temperature; 0 decodes greedily; None takes the model's own generation settings.
        max_new_tokens: Maximum number of tokens of a response.
    """

    temperature: float | None
    max_new_tokens: int

    def options(self) -> dict[str, bool | float | int]:
        """The options of `generate`."""
        if self.temperature is None:
            return {}
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": 0}


class Interrupt(StoppingCriteria):
    """Ends a generation once its event is set."""

    def __init__(self) -> None:
        self.event = Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: object) -> Tensor:  # type: ignore[override]
        """Whether each sequence is done."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class Speaker:
    """A model with its tokenizer and chat template.

    Args:
        name: Name that people see.
        model: The model, in eval mode.
        tokenizer: Its tokenizer, with a chat template.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.positions = positions_of(model.config)
        self.finish: Finish = "stop"  # of the latest response

    @classmethod
    def load(cls, name: str) -> "Speaker":
        """Load an export, the export of a run folder, or a model of the Hub.

        Raises:
            ValueError: If there is none, or it has no chat template.
        """
        source = find_model(name)
        device = find_device()
        try:
            with no_progress_bar(Path(source).is_dir()):
                config = load_config(source)
                own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
                dtype = torch.float32 if device.type == "cpu" else own  # bf16 is slow on most CPUs
                model = load_pretrained(source, config, dtype)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"could not load {source}: {first_line(error)}") from error
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {source} has no chat template: `chat` needs a model that was trained on chats"
            )
        model.to(device)  # type: ignore[arg-type]  # transformers wraps it
        if settings := model.generation_config:
            eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]  # of an adapter, its only one
            settings.eos_token_id = list(dict.fromkeys([*stop_ids(model), *eos])) or None
            settings.stop_strings = (read_certificate(Path(source)) or {}).get("stop_strings") or settings.stop_strings
        return cls(name, model.eval(), tokenizer)

    def prompt_ids(self, messages: list[Message]) -> Tensor:
        """The token ids of a conversation, up to where the response starts, [1, T].

        Raises:
            ValueError: If they leave no position for a response, or the template refuses them.
        """
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:  # such as Gemma's of a system text
            raise ValueError(f"the chat template of {self.name} refuses this conversation: {error}") from error
        ids: Tensor = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        if ids.shape[1] >= self.positions:
            raise ValueError(
                f"the conversation has {ids.shape[1]:,} tokens, and {self.name} has {self.positions:,} positions:"
                " write less, or /reset"
            )
        return ids.to(self.model.device)

    def respond(self, messages: list[Message], sampling: Sampling) -> Iterator[str]:
        """The pieces of a response, as they are generated; `finish` says afterwards where it ended.

        Raises:
            ValueError: If the conversation does not fit the model.
        """
        ids, self.finish = self.prompt_ids(messages), "stop"
        room = min(sampling.max_new_tokens, self.positions - ids.shape[1])
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        generation = Generation(self, ids, streamer, room, sampling)
        generation.start()
        try:
            yield from until_text(streamer, self.stop_texts())
        finally:  # also when nobody wants the rest
            generation.interrupt.event.set()
            generation.join()
        if generation.error is not None:
            raise generation.error
        limits = {"max_new_tokens": sampling.max_new_tokens, "positions": self.positions}
        self.finish = finish_of(ids.shape[1], generation.num_tokens, **limits)

    def is_greedy(self, sampling: Sampling) -> bool:
        """Whether a prompt always has the same response."""
        own = self.model.generation_config and self.model.generation_config.do_sample
        return not sampling.options().get("do_sample", own)

    def stop_texts(self) -> list[str]:
        """Texts that end a response, where no single token does."""
        return (self.model.generation_config and self.model.generation_config.stop_strings) or []


def until_text(pieces: Iterable[str], stops: list[str]) -> Iterator[str]:
    """The pieces up to the first stop text; as many characters are held back as may be the start of one."""
    text, shown, held = "", 0, max((len(stop) - 1 for stop in stops), default=0)
    for piece in pieces:
        text += piece
        found = [text.find(stop) for stop in stops if stop in text]
        end = min(found) if found else max(len(text) - held, shown)
        yield text[shown:end]
        shown = end
        if found:
            return
    yield text[shown:]


class Generation(Thread):
    """One call of `generate`, in a thread of its own, so that its text can be read while it grows."""

    def __init__(
        self, speaker: Speaker, ids: Tensor, streamer: TextIteratorStreamer, room: int, sampling: Sampling
    ) -> None:
        super().__init__(daemon=True)
        self.speaker, self.ids, self.streamer = speaker, ids, streamer
        self.options = {**sampling.options(), "max_new_tokens": room, "num_beams": 1}  # beams have no stream
        self.interrupt = Interrupt()
        self.num_tokens = 0
        self.error: Exception | None = None

    def run(self) -> None:
        """Generate; an error ends the stream and is kept for the reader."""
        speaker = self.speaker
        try:
            output: Tensor = speaker.model.generate(  # type: ignore[operator]
                self.ids,
                attention_mask=torch.ones_like(self.ids),
                tokenizer=speaker.tokenizer,
                streamer=self.streamer,
                stopping_criteria=[self.interrupt],
                **self.options,
            )
            new = output[0, self.ids.shape[1] :].tolist()
            self.num_tokens = len(new) - (bool(new) and new[-1] in stop_ids(speaker.model))
        except Exception as error:
            self.error = error
            self.streamer.end()


def stop_ids(model: PreTrainedModel) -> list[int]:
    """Tokens at which a model stops generating."""
    stops = model.generation_config.eos_token_id if model.generation_config else None
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def find_device() -> torch.device:
    """The GPU of this machine, or its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def find_model(name: str) -> str:
    """The folder or the name on the Hub that `name` means: of a run folder, its export.

    Raises:
        ValueError: If there is no such folder, or the run has no export.
    """
    check_folder(name, "DIR")
    folder = Path(name)
    if not folder.is_dir():
        return name
    for found in (folder, folder / "export"):
        if any((found / file).is_file() for file in ("config.json", "adapter_config.json")):
            return str(found)
    raise ValueError(
        f"{folder} holds no model: give an export, or the folder of a run that has one. `python -m smollit export"
        f" --config {folder / 'config.yaml'}` makes one of its checkpoints"
    )
