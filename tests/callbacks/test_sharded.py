"""The callbacks on a sharded policy: FSDP2 with one process on the CPU runs the same code as with many GPUs."""

import logging
from typing import Any

import pytest
import torch
from torch.optim import SGD
from transformers import AutoModelForCausalLM

from callbacks import ExportHuggingFace, SampleGenerations, Throughput


@pytest.mark.slow
def test_a_sharded_run_exports_counts_and_says_that_it_has_no_samples(
    make_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The same 3 steps as an unsharded run: same weights exported, same totals; one warning for 4 attempts to generate.

    By SGD: AdamW divides a gradient by its own size, so where it is almost 0 a rounding of 1e-8 moves a weight by up to
    the learning rate.
    """
    sgd: dict[str, Any] = {"optimizer": lambda params: SGD(params), "learning_rate": 0.1}
    totals, weights = [], []
    for folder, strategy in (("plain", "auto"), ("sharded", "fsdp2")):
        throughput = Throughput()
        callbacks = [throughput, SampleGenerations(["Hi"], every_n_steps=1, max_new_tokens=2), ExportHuggingFace()]
        with caplog.at_level(logging.WARNING):
            run = make_run(callbacks, model=sgd, folder=folder, strategy=strategy, max_steps=3).fit()
        totals.append(throughput.state_dict())
        weights.append(AutoModelForCausalLM.from_pretrained(run.folder / "export").state_dict())
    assert totals[0] == totals[1]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-5, atol=1e-6)
    assert sum("sharded model can't generate" in record.message for record in caplog.records) == 1
    assert not (run.folder / "samples.jsonl").exists()


def test_predict_on_a_sharded_model_is_refused_in_one_sentence(make_run: Any) -> None:
    """transformers' generate calls the model below the module that gathers the shards."""
    run = make_run([], strategy="fsdp2")
    with pytest.raises(ValueError, match=r"`trainer\.strategy` auto or ddp"):
        run.trainer.predict(run.module, datamodule=run.data)
