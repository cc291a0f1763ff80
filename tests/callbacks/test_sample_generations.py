"""SampleGenerations: observes the run, and does not change it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from callbacks import SampleGenerations
from callbacks.sample_generations import Sample, as_markdown, wrapped
from tests.conftest import edited

PROMPTS = ["Which city is the capital of Canada?", "Hi"]


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[int]:
    return [sample["step"] for sample in samples(folder)]


def greedy(model_name: str, prompt: str, num_tokens: int) -> str:
    """transformers alone, one prompt, no padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_name), AutoTokenizer.from_pretrained(model_name)
    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False, eos_token_id=[2, 0], pad_token_id=0)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_samples_are_generated_before_after_validation_and_at_the_end(make_run: Any) -> None:
    """Validation every 2 of 3 steps and after the last: steps 0, 2, 3, each prompt once."""
    run = make_run([SampleGenerations(PROMPTS, max_new_tokens=4)], max_steps=3, val_every_n_steps=2).fit()
    assert steps(run.folder) == [0, 0, 2, 2, 3, 3]
    assert [sample["prompt"] for sample in samples(run.folder)] == PROMPTS * 3
    assert {sample["reference"] for sample in samples(run.folder)} == {None}


@pytest.mark.slow
def test_samples_are_generated_every_n_optimizer_steps(make_run: Any) -> None:
    """8 rows, 2 per batch, 2 batches per step, 2 epochs: 4 steps; every 3rd, and the last; not at validations."""
    callback = SampleGenerations(["Hi"], every_n_steps=3, max_new_tokens=2)
    run = make_run([callback], max_epochs=2, accumulate_grad_batches=2, val_every_n_steps=1).fit()
    assert steps(run.folder) == [0, 3, 4]


@pytest.mark.slow
def test_policy_and_reference_begin_with_what_transformers_says(make_run: Any) -> None:
    """Step 0: policy = reference = greedy response of the source, although training has dropout and checkpointing; the
    reference stays so while the policy learns."""
    model = {"dropout": 0.5, "gradient_checkpointing": True}
    run = make_run([SampleGenerations(PROMPTS, max_new_tokens=8)], "dpo", model, max_steps=3).fit()
    expected = [greedy(run.module.model_name, prompt, 8) for prompt in PROMPTS]
    found = samples(run.folder)
    assert [sample["policy"] for sample in found[:2]] == expected
    assert [sample["reference"] for sample in found] == expected * 2
    assert [sample["policy"] for sample in found[2:]] != expected


@pytest.mark.parametrize(("reference", "is_there"), [("precomputed", False), ("offloaded", True)])
def test_a_reference_that_is_not_in_memory_has_no_responses(make_run: Any, reference: str, is_there: bool) -> None:
    """Precomputed, it is not in memory; offloaded, it generates on the CPU."""
    callback = SampleGenerations(["Hi"], max_new_tokens=2)
    run = make_run([callback], kind="dpo", model={"reference": reference}, max_steps=1).fit()
    assert [sample["reference"] is not None for sample in samples(run.folder)] == [is_there] * 2


def test_tensorboard_shows_the_texts(make_run: Any) -> None:
    """One text per prompt, on the axis of optimizer steps."""
    run = make_run([SampleGenerations(PROMPTS, max_new_tokens=4)], max_steps=2).fit()
    events = EventAccumulator(str(run.folder), size_guidance={"tensors": 0})
    events.Reload()
    for number, prompt in enumerate(PROMPTS):
        texts = events.Tensors(f"samples/{number}/text_summary")
        assert [text.step for text in texts] == [0, 2]
        assert prompt in texts[0].tensor_proto.string_val[0].decode()


# promise: samples
@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_the_run_is_the_same_with_and_without(make_run: Any, kind: str) -> None:
    """Dropout 0.5 makes the weights depend on the random state: equal to the bit, also with sampling at 1.0."""
    runs = []
    for folder, callbacks in (
        ("without", []),
        ("with", [SampleGenerations(PROMPTS, every_n_steps=1, max_new_tokens=4, temperature=1.0)]),
    ):
        torch.manual_seed(0)
        model = {"dropout": 0.5, "gradient_checkpointing": True}
        run = make_run(callbacks, kind, model, folder, max_steps=3, val_every_n_steps=2).fit()
        runs.append(torch.cat([parameter.flatten() for parameter in run.module.policy.parameters()]))
    assert torch.equal(*runs)


@pytest.mark.slow
def test_the_seed_makes_sampled_responses_repeatable(make_run: Any) -> None:
    """Same seed, same responses at step 0; another seed, others."""
    responses = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        callback = SampleGenerations(["Hi"], max_new_tokens=12, temperature=1.0, seed=seed)
        responses.append(samples(make_run([callback], folder=folder, max_steps=1).fit().folder)[0]["policy"])
    assert responses[0] == responses[1] != responses[2]


# case: E5
def test_samples_end_at_the_models_last_position(
    make_run: Any, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first prompt takes all P positions and is named; `Hi` has room for all 8 tokens, a third one for 2."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    chats = [[{"role": "user", "content": "Hi" + " there" * count}] for count in (60, 0, 58)]
    render = partial(tokenizer.apply_chat_template, add_generation_prompt=True, return_dict=False)
    lengths = [len(render(chat)) for chat in chats]
    assert lengths[0] == lengths[2] + 2
    small = edited(tiny_model, tmp_path / "small", max_position_embeddings=lengths[0])
    callback = SampleGenerations([chat[0]["content"] for chat in chats], max_new_tokens=8)
    with caplog.at_level("WARNING", "callbacks"):
        found = samples(make_run([callback], model={"model_name": str(small)}, max_steps=1).fit().folder)[:3]
    assert [sample["finish"] for sample in found] == ["prompt_too_long", "max_new_tokens", "last_position"]
    assert [sample["policy"] for sample in found] == [
        "",
        greedy(str(small), "Hi", 8),
        greedy(str(small), chats[2][0]["content"], 2),
    ]
    assert "longer than the model's positions: [0]" in caplog.text


def test_a_resumed_run_continues_the_file(make_run: Any) -> None:
    """Stopped after step 2, with samples of steps that were lost: steps 0, 2, 3, 4 once each, as without the stop."""
    make_run([SampleGenerations(["Hi"], max_new_tokens=2)], max_steps=2).fit()
    callback = SampleGenerations(["Hi"], every_n_steps=1, max_new_tokens=2)
    run = make_run([callback], max_steps=4)
    with (run.folder / "samples.jsonl").open("a") as file:
        file.write('{"step": 3, "prompt": "Hi", "policy": "lost", "reference": null}\n{"step": 4, "pro')
    run.fit(ckpt_path="last")
    assert steps(run.folder) == [0, 2, 3, 4]
    assert "lost" not in (run.folder / "samples.jsonl").read_text()


def test_a_new_run_in_the_same_folder_starts_a_new_file(make_run: Any) -> None:
    """The samples of a run of 2 steps, then of a run of 1 step that does not resume: steps 0 and 1 only."""
    for max_steps in (2, 1):
        run = make_run([SampleGenerations(["Hi"], max_new_tokens=2)], max_steps=max_steps).fit()
    assert steps(run.folder) == [0, 1]


def test_markdown_does_not_interpret_the_response() -> None:
    """Every line of a text is indented by four: a code block, whatever it holds."""
    sample = Sample(step=1, prompt="a", policy="# b\n<i>c</i>", reference=None, finish="stop")
    assert as_markdown(sample) == "**prompt**\n\n    a\n\n**policy**\n\n    # b\n    <i>c</i>"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": ["a"], "every_n_steps": 0}, "every_n_steps"),
        ({"prompts": ["a"], "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompts": ["a"], "temperature": -1.0}, "temperature"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], named: str) -> None:
    """The message names the option."""
    with pytest.raises(ValueError, match=f"`{named}`"):
        SampleGenerations(**options)


def test_long_lines_are_wrapped_between_words() -> None:
    """Width 7: "aa bb c" is 7 wide, so "dd" starts a new line; an empty line and indentation stay."""
    assert wrapped("aa bb c dd\n\n  x", width=7) == ["aa bb c", "dd", "", "  x"]
