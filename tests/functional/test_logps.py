"""Token log-probabilities against log_softmax of plain logits and torch's own fused loss; sums per sequence by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from smollit.functional.logps import HeadOutput, SummedOutput, summed_logps, token_logps
from smollit.functional.sums import sequence_index, sum_per_sequence


def plain_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The whole [M, V] matrix at once, by torch's own log_softmax."""
    return torch.log_softmax(hidden @ weight.T, dim=1).gather(1, labels[:, None])[:, 0]


def assert_over_vocabulary(found: HeadOutput | SummedOutput, head: tuple[Tensor, Tensor, Tensor]) -> None:
    """`correct` by argmax, the entropy by torch.distributions; neither has a gradient."""
    logits = head[0] @ head[1].T
    assert torch.equal(found.correct, logits.argmax(dim=1) == head[2])
    assert found.entropies is not None
    assert not found.entropies.requires_grad
    torch.testing.assert_close(found.entropies, Categorical(logits=logits).entropy().detach(), rtol=1e-6, atol=1e-6)


def random_head(num_tokens: int = 7, hidden: int = 5, vocabulary: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and a weight that need gradients, and labels."""
    torch.manual_seed(0)
    tensors = torch.randn(num_tokens, hidden), torch.randn(vocabulary, hidden)
    return *(tensor.requires_grad_() for tensor in tensors), torch.randint(vocabulary, (num_tokens,))


def assert_same_gradients(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """dh and dW of two scalars, to 1e-5."""
    ours, theirs = (torch.autograd.grad(scalar, inputs) for scalar in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)


# promise: chunked-head
# case: perf-03
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_give_the_log_probabilities_and_gradients_of_all_logits_at_once(chunk_size: int) -> None:
    """Chunks of 1, 3, all and more than all 7 tokens: log p, dh and dW equal log_softmax's autograd. Every token has a
    different factor, from 1 to 7."""
    head = random_head()
    found = token_logps(*head, chunk_size=chunk_size, correct=True, entropy=True)
    expected, factors = plain_logps(*head), torch.arange(1.0, 8.0)
    torch.testing.assert_close(found.logps, expected, rtol=1e-6, atol=1e-6)
    assert_over_vocabulary(found, head)
    assert_same_gradients((found.logps * factors).sum(), (expected * factors).sum(), *head[:2])


# case: perf-03
@pytest.mark.parametrize("lengths", [[7], [3, 4], [7, 0], [1, 2, 4]])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_sums_have_the_gradients_of_all_logits_at_once(chunk_size: int, lengths: list[int]) -> None:
    """-0.5, 2 and 3 x the sums of one, two (one pass) and three sequences (logits computed twice)."""
    head, factors = random_head(), torch.tensor([-0.5, 2.0, 3.0][: len(lengths)])
    found = summed_logps(*head, lengths=lengths, chunk_size=chunk_size, correct=True, entropy=True)
    expected = plain_logps(*head)
    sums = torch.stack([part.sum() for part in expected.split(lengths)])
    torch.testing.assert_close((found.logps, found.sums), (expected, sums), rtol=1e-6, atol=1e-6)
    assert_over_vocabulary(found, head)
    assert not found.logps.requires_grad
    assert_same_gradients((found.sums * factors).sum(), (sums * factors).sum(), *head[:2])


# case: dpo-loss-04
@pytest.mark.parametrize("lengths", [[40], [25, 15], [9, 4, 13, 3, 11]])
@pytest.mark.parametrize("trained", [(True, True), (True, False)], ids=["all weights", "an adapter"])
def test_a_frozen_head_rounds_as_a_trained_one(lengths: list[int], trained: tuple[bool, bool]) -> None:
    """40 tokens in chunks of 16: sums of a reference, which needs no gradient, equal those of the policy to the bit. So
    the first loss of DPO is ln 2."""
    hidden, weight, labels = random_head(40, 96, 500)
    policy = summed_logps(
        *(tensor.detach().requires_grad_(needs) for tensor, needs in zip((hidden, weight), trained, strict=True)),
        labels,
        lengths=lengths,
        chunk_size=16,
    )
    reference = summed_logps(hidden.detach(), weight.detach(), labels, lengths=lengths, chunk_size=16)
    assert torch.equal(policy.sums, reference.sums)
    assert torch.equal(policy.logps, reference.logps)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs a newer torch")
@pytest.mark.parametrize("lengths", [[40], [25, 15], [10, 10, 20]])
def test_heads_agree_with_torchs_linear_cross_entropy(lengths: list[int]) -> None:
    """40 tokens, 50 words, fp32: minus the sum of all log p is its loss with reduction `sum`, gradients included."""
    head = random_head(40, 16, 50)
    expected = F.linear_cross_entropy(*head, reduction="sum")
    for found in (
        token_logps(*head, chunk_size=8).logps.sum(),
        summed_logps(*head, lengths=lengths, chunk_size=8).sums.sum(),
    ):
        torch.testing.assert_close(-found, expected, rtol=1e-6, atol=0)
        assert_same_gradients(-found, F.linear_cross_entropy(*head, reduction="sum"), *head[:2])


# case: perf-03
@pytest.mark.parametrize("lengths", [None, [64], [60, 4]])
def test_no_logits_are_kept_for_the_backward_pass(lengths: list[int] | None) -> None:
    """64 tokens x 5, 500 words x 5, chunks of 8. Token by token, autograd keeps the inputs; for sums, their gradients:
    320 numbers, and 2,500 for each sequence; never the 32,000 logits."""
    head = random_head(64, 5, 500)
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if lengths is None:
            token_logps(*head, chunk_size=8, correct=True)
        else:
            summed_logps(*head, lengths=lengths, chunk_size=8)
    assert sorted(sizes.values()) == ([64, 64 * 5, 500 * 5] if lengths is None else [64 * 5] + [500 * 5] * len(lengths))


@pytest.mark.parametrize(("lengths", "passes"), [([8], 1), ([3, 5], 1), ([2, 2, 4], 2), ([], 2)])
def test_the_logits_of_one_or_two_sequences_are_computed_once(lengths: list[int], passes: int) -> None:
    """8 tokens, 11 words, one chunk: products with 11 columns, once for one or two sequences, and again in the backward
    pass for more. Without any sequence there is one empty chunk."""
    head, rows = random_head(sum(lengths)), 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal rows
            output = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and output.shape[1] == 11:
                rows += max(len(output), not lengths)
            return output

    with Count():
        summed_logps(*head, lengths=lengths, chunk_size=8).sums.sum().backward()
    assert rows == passes * max(sum(lengths), 1)
    assert head[1].grad.shape == head[1].shape


def test_both_heads_agree_under_autocast() -> None:
    """bf16 products: the gradients differ by their scale only, so they are within bf16's 8 bits, and in fp32."""
    *inputs, labels = random_head(32, 16, 50)
    ways: list[Callable[[], Tensor]] = [
        lambda: summed_logps(*inputs, labels, lengths=[20, 12], chunk_size=8).sums.sum(),
        lambda: token_logps(*inputs, labels, chunk_size=8).logps.sum(),
    ]
    grads = []
    for total in ways:
        with torch.autocast("cpu", torch.bfloat16):
            grads.append(torch.autograd.grad(-total() / 32, inputs))
    assert {gradient.dtype for gradient in grads[0]} == {torch.float32}
    torch.testing.assert_close(*grads, rtol=2**-6, atol=2e-3)


# case: mask-02
@pytest.mark.parametrize("summed", [True, False])
def test_no_loss_tokens_give_zero_with_zero_gradients(summed: bool) -> None:
    """M = 0: 0.0 exactly, gradients 0, not None: ranks without loss tokens take part in the reduction."""
    head = random_head(0)
    total = (
        summed_logps(*head, lengths=[0], chunk_size=3).sums.sum()
        if summed
        else token_logps(*head, chunk_size=3).logps.sum()
    )
    assert total.item() == 0.0
    total.backward()
    assert head[1].grad is not None
    assert head[1].grad.abs().sum() == 0


def test_without_gradients_there_is_no_graph() -> None:
    """As in validation."""
    head = random_head()
    with torch.no_grad():
        assert not summed_logps(*head, lengths=[7], chunk_size=3).sums.requires_grad
        assert not token_logps(*head, chunk_size=3).logps.requires_grad


def test_a_second_backward_pass_through_the_sum_is_refused() -> None:
    """The first pass scales the kept gradients in place: a second one would scale them twice."""
    total = summed_logps(*random_head(), lengths=[7], chunk_size=3).sums.sum()
    (2 * total).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (2 * total).backward()


def test_fp16_gradients_keep_their_range_in_the_sum() -> None:
    """Logits 0 and 1,000 times -12: p = 6e-6. Unscaled, fp16 rounds a gradient of 6e-6 by up to 1 %; with a factor of
    1,024, which the module's nominal count gives, by at most 2^-11."""
    hidden = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.full((1001, 1), -12.0, dtype=torch.float16)
    weight[0] = 0.0
    weight.requires_grad_()
    (1024 * summed_logps(hidden, weight, torch.tensor([0]), lengths=[1], chunk_size=1).sums.sum()).backward()
    exact = torch.softmax(weight.detach().double()[:, 0], dim=0)[1:]
    torch.testing.assert_close(weight.grad[1:, 0].double(), -1024 * exact, rtol=2**-10, atol=0)


# case: dpo-loss-06
def test_bf16_logits_are_summed_in_fp32() -> None:
    """512 labels, V = 49,152, H = 1, so logits = w_v: the bf16 head's sum lies within 0.2 of fp64's; an all-bf16
    log-softmax and sum miss by more than 1."""
    torch.manual_seed(0)
    weight = torch.randn(49152, 1).bfloat16()
    labels = torch.randint(49152, (512,))
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    found = summed_logps(hidden, weight, labels, lengths=[512], chunk_size=128)
    exact = torch.log_softmax(weight[:, 0].double(), dim=0)[labels].sum()
    coarse = torch.log_softmax(weight[:, 0], dim=0)[labels].cumsum(0)[-1]  # one bf16 number after the other
    assert found.logps.dtype == found.sums.dtype == torch.float32
    assert abs(found.sums[0].double() - exact) < 0.2
    assert abs(coarse.double() - exact) > 1


def test_a_tie_for_the_largest_logit_is_correct() -> None:
    """W = identity, so logits = hidden: [3 1 2] has its largest at 0, [0 5 5] at 1 and 2. Only where requested."""
    hidden, labels = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 5.0, 5.0]]), torch.tensor([0, 2, 2])
    assert token_logps(hidden, torch.eye(3), labels, chunk_size=2, correct=True).correct.tolist() == [True, False, True]
    assert token_logps(hidden, torch.eye(3), labels, chunk_size=2).correct is None


def test_uniform_logits_give_minus_log_of_the_vocabulary() -> None:
    """hidden 0 -> all 8 logits 0 -> p = 1/8 -> log p = -ln 8."""
    output = token_logps(torch.zeros(2, 4), torch.randn(8, 4), torch.tensor([0, 7]), chunk_size=1)
    torch.testing.assert_close(output.logps, torch.full((2,), -math.log(8)))


def test_sums_go_to_their_sequence() -> None:
    """Values 1 2 3 4 of sequences 0 2 0 2 -> 1 + 3, nothing, 2 + 4. Lengths 2, 0 and 3 are sequences 0 0 2 2 2."""
    sums = sum_per_sequence(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 2, 0, 2]), 3)
    assert sums.tolist() == [4.0, 0.0, 6.0]
    assert sequence_index([2, 0, 3], torch.device("cpu")).tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize(("hidden", "chunk_size"), [((3, 4), 1), ((2, 5), 1), ((2, 4), 0)])
def test_shapes_that_do_not_match_are_named(hidden: tuple[int, int], chunk_size: int) -> None:
    """2 labels and W [8, 4] need hidden [2, 4] and chunks of at least 1; lengths must sum to the labels."""
    with pytest.raises(ValueError, match="must be"):
        token_logps(torch.zeros(hidden), torch.zeros(8, 4), torch.tensor([0, 1]), chunk_size=chunk_size)
    with pytest.raises(ValueError, match="number of labels, 7, got 8"):
        summed_logps(*random_head(), lengths=[3, 5], chunk_size=4)
    with pytest.raises(ValueError, match="to match `values`"):
        sum_per_sequence(torch.zeros(2), torch.zeros(3, dtype=torch.long), 1)
