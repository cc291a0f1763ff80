"""Adam's beta2 by its half-life in loss tokens: for any size of a step, said at the start, never beside another one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch.optim import SGD, AdamW

from tests.conftest import Run


def beta2_of(run: Run) -> float:
    return float(run.trainer.optimizers[0].param_groups[0]["betas"][1])


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_beta2_follows_from_the_tokens_of_a_step(
    make_run: Callable[..., Run], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 rows in steps of 2, 4 and 4, counted in the batches: beta2 = 2^-(tokens of an epoch / steps / half-life). So
    after the steps of one half-life, the gradient of the first of them counts half."""
    half_life, found = 1000.0, {}
    for rows, accumulation in ((2, 1), (4, 1), (2, 2)):
        run = make_run(
            kind=kind,
            folder=f"{rows}-{accumulation}",
            model={"beta2_half_life": half_life},
            data={"train_batch_size": rows},
            accumulate_grad_batches=accumulation,
            max_steps=1,
        ).fit()
        tokens = sum(batch.num_loss_tokens for batch in run.data.train_dataloader())
        steps_of_a_half_life = half_life / (tokens / (8 / (rows * accumulation)))
        assert beta2_of(run) ** steps_of_a_half_life == pytest.approx(0.5)
        assert f"beta2 {beta2_of(run):.6g}, half-life 1,000 loss tokens" in " ".join(capsys.readouterr().out.split())
        found[rows, accumulation] = beta2_of(run)
    assert found[2, 1] ** 2 == pytest.approx(found[4, 1]) and found[4, 1] == found[2, 2]


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (
            {"optimizer": partial(AdamW, betas=(0.8, 0.95))},
            {},
            "has a beta2 of 0.95, and `model.beta2_half_life` would",
        ),
        ({"optimizer": SGD}, {}, "SGD has no `betas`"),
        ({}, {"streaming": True}, "which a stream, and a data module of your own, do not count"),
        ({"beta2_half_life": 0.0}, {}, "`model.beta2_half_life` must be greater than 0 and finite, got 0.0"),
    ],
)
def test_what_leaves_no_beta2_to_set_is_refused(
    make_run: Callable[..., Run], model: dict[str, Any], data: dict[str, Any], words: str
) -> None:
    """A beta1 alone is none of it."""
    with pytest.raises(ValueError, match=words):
        make_run(model={"beta2_half_life": 1e6, **model}, data={"train_split": "train_sft", **data}, max_steps=1).fit()
    run = make_run(model={"beta2_half_life": 1e6, "optimizer": partial(AdamW, betas=(0.8, 0.999))}, max_steps=1).fit()
    assert run.trainer.optimizers[0].param_groups[0]["betas"] == (0.8, beta2_of(run))
