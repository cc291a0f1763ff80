"""The measurements of growth.py, each for a process of its own."""

import ctypes
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compare.prepare import Watch
from compare.record import peak_bytes, resident_bytes
from compare.rows import make_data
from smollit.data.batching.collate import collate_chats
from smollit.functional.logps import summed_logps, token_logps
from smollit.modules import SFTModule
from smollit.training.memory.device import keep_freed_memory

DOCUMENT = 256  # tokens of a document, about
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
REPEATS = 3  # passes at each number of tokens, of which the fastest counts


def document_lengths(tokens: int) -> list[int]:
    """Lengths of documents that make up `tokens`, as equal as can be."""
    count = max(1, round(tokens / DOCUMENT))
    return [tokens // count + (number < tokens % count) for number in range(count)]


def make_batch(lengths: list[int], num_words: int) -> Any:
    """A batch with a row for each document of random tokens, all of them trained."""
    random = torch.Generator().manual_seed(0)
    # n positions predict n tokens: n + 1 ids.
    ids = [torch.randint(num_words, (length + 1,), generator=random).tolist() for length in lengths]
    return collate_chats([[{"input_ids": row, "spans": [1, len(row)], "row": n}] for n, row in enumerate(ids)])


def time_tokens(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of forward and backward of SFTModule at each number of tokens: {"seconds": {tokens: [...]}}."""
    keep_freed_memory()  # as `fit` does
    module = SFTModule(model_name=job["model"], attention="documents")
    module.configure_model()
    num_words = module.policy.config.vocab_size

    def step(tokens: int) -> float:
        batch = make_batch(document_lengths(tokens), num_words)
        start = time.perf_counter()
        loss_sum, count = module.step(batch, "train")
        (loss_sum / count).backward()
        seconds = time.perf_counter() - start
        module.zero_grad(set_to_none=True)
        return seconds

    step(min(job["tokens"]))  # to warm up
    # The first pass at a size makes the process grow.
    return {"seconds": {tokens: [step(tokens) for _ in range(REPEATS)] for tokens in job["tokens"]}}


def by_token(states: Tensor, weight: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
    """smollit's head for several sequences."""
    return -token_logps(states, weight, labels, chunk_size=chunk_size).logps.sum()


def by_sum(states: Tensor, weight: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
    """smollit's head for SFT: one sum."""
    return -summed_logps(states, weight, labels, lengths=[len(labels)], chunk_size=chunk_size).sums.sum()


def by_torch(states: Tensor, weight: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
    """torch's own head, in chunks of the same size; newer versions of torch have it."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_size)
    return torch.nn.functional.linear_cross_entropy(states, weight, labels, reduction="sum", options=options)


HEADS = {"token_logps": by_token, "summed_logps": by_sum, "torch": by_torch}


def measure_head(job: dict[str, Any]) -> dict[str, Any]:
    """Memory of forward and backward of the head, beyond its inputs, and the seconds of `repeats` more of them."""
    if not job["repeats"]:  # glibc would keep freed blocks of up to 32 MB, which hides what is in use
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
    loss = HEADS[job["head"]]
    tokens, hidden, vocabulary = job["tokens"], job["hidden"], job["vocabulary"]
    random = torch.Generator().manual_seed(0)

    def inputs(tokens: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
        states, weight = (
            torch.randn(tokens, hidden, generator=random),
            torch.randn(vocabulary, hidden, generator=random),
        )
        targets = torch.randint(vocabulary, (tokens,), generator=random)
        return states.requires_grad_(), weight.requires_grad_(), targets

    def step(states: Tensor, weight: Tensor, targets: Tensor) -> float:
        states.grad = weight.grad = None
        start = time.perf_counter()
        loss(states, weight, targets, job["chunk_size"] or tokens).backward()
        return time.perf_counter() - start

    step(*inputs(16, 64))  # libraries load their kernels and buffers
    given = inputs(tokens, vocabulary)
    before = resident_bytes("cpu")
    step(*given)
    peak = peak_bytes("cpu")
    if job["repeats"]:
        keep_freed_memory()  # as `fit` does
        step(*given)
    return {"memory": peak - before, "seconds": [step(*given) for _ in range(job["repeats"])]}


def measure_rows(job: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of preparing and loading a file's rows, and of one epoch's batches of row numbers."""
    with Watch() as watch:
        data = make_data("sft", Path(job["file"]), job["tokenizer"], 1024, Path(job["cache"]), shuffle=True)
        data.prepare_data()
        data.setup("fit")
        rows = sum(len(batch) for batch in data.sampler())
    return {"rows": rows, "peak_memory": peak_bytes("cpu"), "peak_own_memory": watch.peak}
