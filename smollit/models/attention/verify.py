"""Ask a model, when it is loaded, what its code does: by comparing numbers, not by lists of names.

Logits: known numbers in place of the head's output show what the model does to them. Attention: joined documents are
compared with separate rows. A model's code decides which backend is right: layers that are not attention carry a
state from document to document, and windows, caps and sinks belong to a layer. So a backend is tried on a few tokens,
on the model's first layers, against transformers' own eager attention.
"""

import copy
import json
import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from smollit.batch import PADDING, Batch, Document
from smollit.functional.attention import AttentionBackend, AttentionSetting
from smollit.functional.head import LogitScaling
from smollit.models.attention.functions import NAMES
from smollit.models.attention.inputs import attention_windows, loss_hidden_states
from smollit.models.attention.kernels import heads_of, kernel_is_right, obstacle, torch_kernel

log = logging.getLogger(__name__)
AUTOMATIC: tuple[AttentionBackend, ...] = ("documents", "sdpa", "eager", "rows")  # the first that is right is taken
TOLERANCE = 1e-4  # of a hidden state, relative to its norm; rounding is below 1e-5
WINDOW = 3  # in place of the model's own sliding windows, which are longer than the documents of the comparison
LIMITS = ("sliding_window", "attention_chunk_size")  # what transformers calls them
PACKED = [[Document(7), Document(4, (4, 6)), Document(3)], [Document(5)]]
# Powers of two, so that a scale is found to the last digit; the largest meets every cap.
KNOWN_OUTPUTS = torch.tensor([2.0**power * sign for sign in (1, -1) for power in (-10, 20, 0, 3, 6)])

PlainAttention = Literal["sdpa", "eager"]


class VerifiedAttention(NamedTuple):
    """A backend that computes what the model computes for separate rows.

    Args:
        backend: The backend.
        plain: transformers' own attention for generation and for `rows`; not every model supports sdpa.
    """

    backend: AttentionBackend
    plain: PlainAttention


_verified: dict[tuple[str, tuple[AttentionBackend, ...]], VerifiedAttention] = {}  # by configuration


def verified_attention(
    model: PreTrainedModel, requested: AttentionSetting, device: torch.device, dtype: torch.dtype
) -> VerifiedAttention:
    """The requested backend, or with `auto` the first that is right for this model and runs on the device.

    Args:
        model: A model on the CPU.
        requested: The setting.
        device: Where the run computes.
        dtype: What the run computes in: that of autocast, or of the weights.

    Raises:
        ValueError: If the requested backend would compute other values than the model's own attention does.
    """
    candidates = _candidates(model, requested, device, dtype)
    key = (model.config.to_json_string(), candidates)
    if key not in _verified:
        before = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # models that can't change their attention warn; the numbers tell
        try:
            with torch.autocast(model.device.type, enabled=False):  # its rounding is larger than the tolerance
                _verified[key] = _Comparison(model).choose(requested, candidates)
        finally:
            transformers_logging.set_verbosity(before)
    return _verified[key]


def _candidates(
    model: PreTrainedModel, requested: AttentionSetting, device: torch.device, dtype: torch.dtype
) -> tuple[AttentionBackend, ...]:
    """What may be used, in this order. The kernel of `varlen` is compared with `documents` on the device itself."""
    reason = obstacle(device, dtype)
    if requested == "varlen" and reason:
        log.warning("`model.attention: varlen` is slow here, where its rule runs in plain torch: %s", reason)
    if requested != "auto":
        return (requested,)
    if reason:
        return AUTOMATIC
    if kernel_is_right(torch_kernel, device, dtype, heads_of(model.config)):
        return ("varlen", *AUTOMATIC)
    log.warning("torch's kernel for `varlen` is not right on %s: `documents` is used, which is slower", device)
    return AUTOMATIC


@torch.no_grad()
def verified_logits(model: PreTrainedModel, model_name: str) -> LogitScaling:
    """What the model does to the output of its head.

    Raises:
        ValueError: If the head is not linear, or the logits are no function of its output that smollit knows.
    """
    head, training = model.get_output_embeddings(), model.training
    if not isinstance(head, nn.Linear) or model.base_model is model:
        raise ValueError(
            f"`{model_name}` is a {type(model).__name__}: smollit needs a decoder and a linear head, as Llama has"
        )
    model.eval()
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    known = KNOWN_OUTPUTS.to(model.device).repeat(head.out_features)[: head.out_features]
    hook = head.register_forward_hook(lambda module, inputs, output: known[None, None])
    changed = model(input_ids=token, use_cache=False).logits.float().flatten()
    hook.remove()
    scale, largest = float(changed[0] / known[0]), float(changed.abs().max())
    is_capped = largest < 0.99 * abs(scale) * float(known.abs().max())
    # The slope of a cap's curve is 1 only to rounding.
    scaling = LogitScaling(1.0 if abs(scale - 1) < 1e-6 else scale, largest if is_capped else None)
    output = head(model.base_model(input_ids=token, use_cache=False).last_hidden_state).float()
    logits = model(input_ids=token, use_cache=False).logits.float()
    model.train(training)
    is_right = torch.allclose(scaling.apply(known), changed, rtol=1e-4)
    if not is_right or not torch.allclose(scaling.apply(output), logits, rtol=1e-2, atol=1e-5):
        raise ValueError(f"`{model_name}` changes its logits in a way that smollit does not support")
    return scaling


class _Comparison:
    """A model's first layers, and what its eager attention computes for separate rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.family: str = model.config.model_type
        self.model = _first_layers(model)
        self.expected = self._hidden_states("rows", "eager")
        self.plain: PlainAttention = "sdpa" if self._is_right("rows", "sdpa") else "eager"

    def choose(self, requested: AttentionSetting, candidates: Sequence[AttentionBackend]) -> VerifiedAttention:
        """The first of the candidates that is right.

        Raises:
            ValueError: If none is.
        """
        for backend in candidates:
            if self._is_right(backend, NAMES.get(backend, self.plain)):
                self._say(requested, backend)
                return VerifiedAttention(backend, self.plain)
        right = [name for name in AUTOMATIC if self._is_right(name, NAMES.get(name, self.plain))]
        raise ValueError(
            f"`model.attention: {requested}` is not right for a {self.family} model: it computes other values than the"
            f" model does for separate rows. Use {' or '.join(right)}" + ("" if right else "another model")
        )

    def _say(self, requested: AttentionSetting, backend: AttentionBackend) -> None:
        if backend == "rows":
            log.warning(
                "%s: this model's layers are not right for documents that share a row, so `model.attention: rows` is"
                " used: one padded row for each chat or response. It needs `data.packing: off`, and computes the prompt"
                " of a pair twice and all padding",
                self.family,
            )
        elif requested == "auto" and backend not in ("varlen", "documents"):
            log.info("%s: `model.attention: %s` is used; `%s` is not right for it", self.family, backend, AUTOMATIC[0])

    def _is_right(self, backend: AttentionBackend, name: str) -> bool:
        try:
            found = self._hidden_states(backend, name)
        except Exception as error:  # whatever the code of some model raises with a backend that it does not support
            log.debug("%s with %s: %s", self.family, name, error)
            return False
        difference = (found - self.expected).norm(dim=1)
        return bool((difference <= TOLERANCE * self.expected.norm(dim=1)).all())

    @torch.no_grad()
    def _hidden_states(self, backend: AttentionBackend, name: str) -> Tensor:
        """Last hidden states of all positions, with the attention `name` of transformers."""
        self.model.set_attn_implementation(name)
        documents = PACKED if backend != "rows" else [[document] for sequence in PACKED for document in sequence]
        batch = _batch_of(documents, vocabulary_size=self.model.config.vocab_size)
        # FlexAttention would compile for a minute; uncompiled it computes the same.
        with torch.compiler.set_stance("force_eager"):
            return loss_hidden_states(self.model, batch, backend, attention_windows(self.model))


def _first_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in fp32 and eval mode with the first layers, up to one of each kind, and with short sliding windows.

    The copy shares the tensors of a model in fp32.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    first = copy.deepcopy(model, shared)
    for part in list(first.modules()):
        if isinstance(part, nn.ModuleList) and len(part) == model.config.num_hidden_layers:
            del part[_num_layers_of_every_kind(first, part) :]
    if model.dtype != torch.float32:
        first = copy.deepcopy(first).float()
    for owner in (first.config, *first.modules()):
        for limit in LIMITS:
            if isinstance(vars(owner).get(limit), int):
                setattr(owner, limit, WINDOW)
    return first.eval()


def _num_layers_of_every_kind(model: PreTrainedModel, layers: nn.ModuleList) -> int:
    types = model.config.to_dict().get("layer_types") or [None] * len(layers)
    kinds = [
        json.dumps([kind, *((type(part).__name__, vars(part).get(LIMITS[0])) for part in layer.modules())])
        for kind, layer in zip(types, layers, strict=True)
    ]
    return max(2, *(kinds.index(kind) + 1 for kind in set(kinds)))


def _batch_of(sequences: list[list[Document]], *, vocabulary_size: int) -> Batch:
    """A batch of these documents with random tokens, in which every position has a label."""
    width = max(sum(document.length for document in documents) for documents in sequences)
    shape = (len(sequences), width)
    ids = torch.zeros(shape, dtype=torch.long)
    position, document, branch = torch.zeros_like(ids), torch.full_like(ids, PADDING), torch.zeros_like(ids)
    random, number = torch.Generator().manual_seed(0), 0
    labelled: list[int] = []
    for row, documents in enumerate(sequences):
        start = 0
        for part in documents:
            for index, length in enumerate((part.shared, *part.responses)):
                own = slice(start, start + length)
                ids[row, own] = torch.randint(vocabulary_size, (length,), generator=random)
                position[row, own] = torch.arange(length) + (part.shared if index else 0)
                document[row, own], branch[row, own] = number, index
                labelled += range(row * width + start, row * width + start + length)
                start += length
            number += 1
    every = torch.tensor(labelled)
    return Batch(ids, ids, position, document, branch, every, torch.arange(number), tuple(map(tuple, sequences)))
