"""Token log-probabilities against log_softmax of plain logits, and sums per sequence by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from smollit.functional.logps import sum_per_sequence, summed_logps, token_logps


def plain_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The whole [M, V] matrix at once, by torch's own log_softmax."""
    return torch.log_softmax(hidden @ weight.T, dim=1).gather(1, targets[:, None])[:, 0]


def random_head(num_tokens: int = 7, hidden: int = 5, words: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(num_tokens, hidden), torch.randn(words, hidden), torch.randint(words, (num_tokens,))


# case: perf-03
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_give_the_log_probabilities_and_gradients_of_all_logits_at_once(chunk_size: int) -> None:
    """Chunks of 1, 3, all and more than all 7 tokens: log p, dh and dW equal log_softmax's autograd to 1e-6."""
    hidden, weight, targets = random_head()
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    plain = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    scale = torch.arange(1.0, 8.0)  # every token has its own share of the gradient
    found, expected = token_logps(ours[0], ours[1], targets, chunk_size=chunk_size).logps, plain_logps(*plain, targets)
    (found * scale).sum().backward()
    (expected * scale).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-5)


# case: perf-03
def test_no_tensor_with_all_tokens_and_all_words_is_kept_for_the_backward_pass() -> None:
    """64 tokens, 500 words, chunks of 8: what autograd saves stays below 64 x 500 numbers, the size of the logits."""
    hidden, weight, targets = random_head(64, 5, 500)
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = token_logps(hidden.requires_grad_(), weight.requires_grad_(), targets, chunk_size=8, correct=True)
    assert output.logps.shape == output.correct.shape == (64,)
    assert max(sizes.values(), default=0) <= weight.numel()
    assert sum(sizes.values()) < 64 * 500


# case: perf-03
@pytest.mark.parametrize("lengths", [[7], [3, 4], [7, 0], [1, 2, 4]])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_sums_have_the_gradients_of_all_logits_at_once(chunk_size: int, lengths: list[int]) -> None:
    """-0.5, 2 and 3 x the sums of one, two (one pass) and three sequences (logits made again), as losses with shares
    would be: log p, dh and dW equal log_softmax's autograd to 1e-6."""
    hidden, weight, targets = random_head()
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    plain = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    found = summed_logps(ours[0], ours[1], targets, lengths=lengths, chunk_size=chunk_size, correct=True)
    expected = plain_logps(*plain, targets)
    factors = [-0.5, 2.0, 3.0][: len(lengths)]
    (found.sums * torch.tensor(factors)).sum().backward()
    sum(factor * part.sum() for factor, part in zip(factors, expected.split(lengths), strict=True)).backward()
    torch.testing.assert_close(found.logps, expected.detach(), rtol=1e-6, atol=1e-6)
    assert found.sums.tolist() == pytest.approx([part.sum().item() for part in expected.split(lengths)])
    assert torch.equal(found.correct, (hidden @ weight.T).argmax(dim=1) == targets)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("lengths", "passes"), [([8], 1), ([3, 5], 1), ([2, 2, 4], 2), ([], 2)])
def test_the_logits_of_few_sequences_are_made_once(lengths: list[int], passes: int) -> None:
    """8 tokens, 11 words, one chunk: products with 11 columns, once for one or two sequences, and again in the
    backward pass for more. Without any sequence there is one empty piece."""
    hidden, weight, targets = random_head(sum(lengths))
    rows = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal rows
            output = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and output.shape[1] == 11:
                rows += max(len(output), not lengths)
            return output

    with Count():
        summed_logps(
            hidden.requires_grad_(), weight.requires_grad_(), targets, lengths=lengths, chunk_size=8
        ).sums.sum().backward()
    assert rows == passes * max(sum(lengths), 1)
    assert weight.grad.shape == weight.shape


def test_the_sum_under_autocast_agrees_with_the_log_probabilities() -> None:
    """bf16 products: both ways round alike but for the gradient's scale, so they are within bf16's 8 bits."""
    hidden, weight, targets = random_head(32, 16, 50)
    grads = []
    ways: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda h, w: summed_logps(h, w, targets, lengths=[20, 12], chunk_size=8).sums.sum(),
        lambda h, w: token_logps(h, w, targets, chunk_size=8).logps.sum(),
    ]
    for total in ways:
        inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", torch.bfloat16):
            (-total(*inputs) / 32).backward()
        assert all(tensor.grad.dtype == torch.float32 for tensor in inputs)
        grads.append([tensor.grad for tensor in inputs])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2e-3)


def test_the_sum_of_no_targets_is_zero_with_zero_gradients() -> None:
    """M = 0: 0.0 exactly, gradients 0, not None: ranks without targets take part in the reduction."""
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    total = summed_logps(hidden, weight, torch.zeros(0, dtype=torch.long), lengths=[0], chunk_size=3).sums.sum()
    assert total.item() == 0.0
    total.backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_the_sum_without_gradients_keeps_nothing() -> None:
    """In validation there is no backward pass: no graph, and the same values."""
    hidden, weight, targets = random_head()
    with torch.no_grad():
        found = summed_logps(hidden.requires_grad_(), weight.requires_grad_(), targets, lengths=[7], chunk_size=3)
    assert not found.sums.requires_grad
    torch.testing.assert_close(found.logps, plain_logps(hidden, weight, targets).detach())
    assert not summed_logps(hidden, weight, targets, lengths=[7], chunk_size=3).logps.requires_grad


@pytest.mark.parametrize("lengths", [[64], [60, 4]])
def test_sums_keep_the_gradients_of_hidden_and_weight_and_no_logits(lengths: list[int]) -> None:
    """64 tokens x 5, 500 words x 5: autograd saves 320 numbers, and 2,500 for each sequence, not 32,000 logits."""
    hidden, weight, targets = random_head(64, 5, 500)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda tensor: tensor):
        summed_logps(hidden.requires_grad_(), weight.requires_grad_(), targets, lengths=lengths, chunk_size=8)
    assert sorted(sizes) == [64 * 5] + [500 * 5] * len(lengths)


def test_a_second_backward_pass_through_the_sum_is_refused() -> None:
    """The kept gradients were scaled in place by the first pass: a second one would scale them twice."""
    hidden, weight, targets = random_head()
    total = summed_logps(
        hidden.requires_grad_(), weight.requires_grad_(), targets, lengths=[7], chunk_size=3
    ).sums.sum()
    (2 * total).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (2 * total).backward()


def test_fp16_gradients_keep_their_range_in_the_sum() -> None:
    """2 words, logits 0 and -12: p = 6e-6 each of 1,000 words of the same kind. Unscaled, fp16 rounds a gradient of
    6e-6 by up to 1 %; with a share of 1,024, as the module's nominal count gives, by at most 2^-11."""
    hidden = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.full((1001, 1), -12.0, dtype=torch.float16)
    weight[0] = 0.0
    weight.requires_grad_()
    (1024 * summed_logps(hidden, weight, torch.tensor([0]), lengths=[1], chunk_size=1).sums.sum()).backward()
    exact = torch.softmax(weight.detach().double()[:, 0], dim=0)[1:]
    torch.testing.assert_close(weight.grad[1:, 0].double(), -1024 * exact, rtol=2**-10, atol=0)


def test_lengths_must_fit_the_targets() -> None:
    """7 targets, lengths of 3 and 5."""
    with pytest.raises(ValueError, match="number of labels, 7, got 8"):
        summed_logps(*random_head(), lengths=[3, 5], chunk_size=4)


def test_correct_marks_the_targets_with_the_largest_logit() -> None:
    """W = identity, so logits = hidden: [3 1 2] has its largest at word 0, [0 5 5] a tie of words 1 and 2."""
    hidden = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
    output = token_logps(hidden, torch.eye(3), torch.tensor([0, 2, 2]), chunk_size=2, correct=True)
    assert output.correct.tolist() == [True, False, True]
    assert token_logps(hidden, torch.eye(3), torch.tensor([0, 2, 2]), chunk_size=2).correct is None


def test_uniform_logits_give_minus_log_of_the_number_of_words() -> None:
    """hidden 0 -> all 8 logits 0 -> p = 1/8 -> log p = -ln 8."""
    output = token_logps(torch.zeros(2, 4), torch.randn(8, 4), torch.tensor([0, 7]), chunk_size=1)
    torch.testing.assert_close(output.logps, torch.full((2,), -math.log(8)))


# case: mask-02
def test_no_targets_give_no_log_probabilities_but_a_graph_with_zero_gradients() -> None:
    """M = 0: the sum is 0.0 exactly, and its gradients are 0, not None."""
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    logps = token_logps(hidden, weight, torch.zeros(0, dtype=torch.long), chunk_size=3).logps
    assert logps.shape == (0,)
    total = logps.sum()
    assert total.item() == 0.0
    total.backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_pieces_are_as_few_as_can_be_and_of_equal_size() -> None:
    """10 tokens, at most 4 at once: 3 pieces of 4, 3, 3, not 4, 4, 2."""
    sizes: list[int] = []
    hidden, weight, targets = random_head(10)

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.log_softmax:
                sizes.append(len(args[0]))
            return func(*args, **(kwargs or {}))

    with Watch():
        token_logps(hidden, weight, targets, chunk_size=4)
    assert sizes == [4, 3, 3]


# case: dpo-loss-06
def test_bf16_logits_are_summed_in_fp32() -> None:
    """512 targets, V = 49,152, H = 1, so logits = w_v: the bf16 head's sum lies within 0.2 of fp64's; an all-bf16
    log-softmax and sum miss by more than 1."""
    torch.manual_seed(0)
    weight = torch.randn(49152, 1).bfloat16()
    targets = torch.randint(49152, (512,))
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        output = token_logps(hidden, weight, targets, chunk_size=128)
        exact = torch.log_softmax(weight[:, 0].double(), dim=0)[targets].sum()
        coarse = torch.log_softmax(weight[:, 0], dim=0)[targets].cumsum(0)[-1]  # one bf16 number after the other
    assert output.logps.dtype == torch.float32
    summed = sum_per_sequence(output.logps, torch.zeros(512, dtype=torch.long), 1)[0]
    assert abs(summed.double() - exact) < 0.2
    assert abs(coarse.double() - exact) > 1


@pytest.mark.parametrize(("hidden", "chunk_size"), [((3, 4), 1), ((2, 5), 1), ((2, 4), 0)])
def test_bad_shapes_and_chunks_are_named(hidden: tuple[int, int], chunk_size: int) -> None:
    """2 targets and W [8, 4] need hidden [2, 4] and chunks of at least 1."""
    with pytest.raises(ValueError, match="must be"):
        token_logps(torch.zeros(hidden), torch.zeros(8, 4), torch.tensor([0, 1]), chunk_size=chunk_size)


def test_sums_go_to_their_sequence() -> None:
    """Values 1 2 3 4 of sequences 0 2 0 2 -> 1+3, nothing, 2+4."""
    sums = sum_per_sequence(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 2, 0, 2]), 3)
    assert sums.tolist() == [4.0, 0.0, 6.0]


def test_sequences_must_match_their_values() -> None:
    """2 values and 3 numbers of sequences."""
    with pytest.raises(ValueError, match="to match `values`"):
        sum_per_sequence(torch.zeros(2), torch.zeros(3, dtype=torch.long), 1)
