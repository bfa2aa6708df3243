"""The plain definitions against textbook formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from oneflow_kernels import reference

LENGTHS = {
    "odd": [3, 1, 7, 5],
    "empty": [0, 4, 0, 0, 9, 0],
    "one row": [1],
    "one sequence": [13],
    "many lengths": [1, 2, 3, 4, 6, 9, 12, 17, 2, 1],
}
every_layout = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
every_order = pytest.mark.parametrize("is_causal", [False, True], ids=["both ways", "causal"])
every_group = pytest.mark.parametrize("num_kv_heads", [1, 2, 4])


def cumulate(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def random_rows(num_rows: int, num_kv_heads: int, dtype: torch.dtype, width: int = 6) -> list[Tensor]:
    """Query of four heads, key and value."""
    generator = torch.Generator().manual_seed(num_rows)
    return [
        torch.randn(num_rows, heads, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (4, num_kv_heads, num_kv_heads)
    ]


def dense_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, is_causal: bool = False) -> Tensor:
    """All pairs of rows under a mask, in the dtype of its arguments."""
    sequence = torch.repeat_interleave(torch.arange(len(cu_seqlens) - 1), cu_seqlens.diff())
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,uhd->htu", query, key) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(sequence[:, None] != sequence[None, :], float("-inf"))
    if is_causal:
        scores = scores + torch.full_like(scores[0], float("-inf")).triu(1)
    return torch.einsum("htu,uhd->thd", scores.softmax(-1), value)


@every_layout
@every_group
@every_order
def test_attention_equals_dense_attention_under_a_mask(lengths: list[int], num_kv_heads: int, is_causal: bool) -> None:
    cu_seqlens = cumulate(lengths)
    rows = random_rows(sum(lengths), num_kv_heads, torch.float64)
    actual = reference.packed_attention(*rows, cu_seqlens, is_causal)
    torch.testing.assert_close(actual, dense_attention(*rows, cu_seqlens, is_causal), rtol=0.0, atol=1e-12)


@every_layout
@every_group
@every_order
def test_gradients_of_attention_equal_those_of_dense_attention(
    lengths: list[int], num_kv_heads: int, is_causal: bool
) -> None:
    cu_seqlens = cumulate(lengths)
    rows = random_rows(sum(lengths), num_kv_heads, torch.float64)
    up = torch.randn(sum(lengths), 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = torch.autograd.grad(reference.packed_attention(*rows, cu_seqlens, is_causal), rows, up)
    expected = torch.autograd.grad(dense_attention(*rows, cu_seqlens, is_causal), rows, up)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)


@every_layout
@every_group
@every_order
def test_written_out_gradients_of_attention_are_those_of_autograd(
    lengths: list[int], num_kv_heads: int, is_causal: bool
) -> None:
    cu_seqlens = cumulate(lengths)
    rows = random_rows(sum(lengths), num_kv_heads, torch.float64)
    up = torch.randn(sum(lengths), 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(dense_attention(*rows, cu_seqlens, is_causal), rows, up)
    actual = reference.packed_attention_backward(up, *(row.detach() for row in rows), cu_seqlens, is_causal)
    assert all(gradient.is_contiguous() for gradient in actual)  # as the fake ones of a compiled graph are
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_layout
def test_error_of_attention_is_at_most_twice_that_of_the_same_formula(lengths: list[int], dtype: torch.dtype) -> None:
    cu_seqlens = cumulate(lengths)
    rows = [row.detach() for row in random_rows(sum(lengths), 2, dtype)]
    exact = dense_attention(*(row.double() for row in rows), cu_seqlens)
    error = (reference.packed_attention(*rows, cu_seqlens) - exact).abs().max()
    plain = (dense_attention(*rows, cu_seqlens) - exact).abs().max()
    assert error <= 2.0 * plain + torch.finfo(dtype).eps


@pytest.mark.parametrize("lengths", [[2, 0, 3], [1], [4, 1, 2]])
def test_gradients_of_attention_are_those_of_finite_differences(lengths: list[int]) -> None:
    cu_seqlens = cumulate(lengths)
    rows = random_rows(sum(lengths), 2, torch.float64, width=2)
    assert torch.autograd.gradcheck(lambda *x: reference.packed_attention(*x, cu_seqlens), rows)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any), st.sampled_from([1, 2, 4]), st.booleans())
def test_attention_of_any_layout(lengths: list[int], num_kv_heads: int, is_causal: bool) -> None:
    cu_seqlens = cumulate(lengths)
    rows = random_rows(sum(lengths), num_kv_heads, torch.float64, width=4)
    actual = reference.packed_attention(*rows, cu_seqlens, is_causal)
    torch.testing.assert_close(actual, dense_attention(*rows, cu_seqlens, is_causal), rtol=0.0, atol=1e-12)


def test_no_row_sees_another_sequence() -> None:
    """The other sequences' outputs and gradients are the same to the bit."""
    lengths = [3, 5, 1, 4]
    cu_seqlens = cumulate(lengths)
    rows = random_rows(13, 2, torch.float32)
    changed = [row.detach().clone() for row in rows]
    for row in changed:
        row[3:8] += 1.0
    before, after = (reference.packed_attention(*x, cu_seqlens) for x in (rows, changed))
    others = torch.tensor([*range(3), *range(8, 13)])
    assert torch.equal(before[others], after[others])
    assert not torch.isclose(before[3:8], after[3:8]).all()
    grads = torch.autograd.grad(before[others].sum(), rows)
    assert all((grad[3:8] == 0.0).all() for grad in grads)


# Cross-entropy of bags.

BAGS = {
    "usual": [0, 0, 2, 3, 3, 3, 6],
    "every slot": list(range(7)),
    "one token": [4],
    "bag of 500": [2] * 500,
    "none": [],
}
every_bag = pytest.mark.parametrize("bag_slot", BAGS.values(), ids=BAGS)
every_chunk = pytest.mark.parametrize("chunk_slots", [1, 2, 3, 2048])


def bag_case(bag_slot: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seven slots, a vocabulary of eleven."""
    generator = torch.Generator().manual_seed(len(bag_slot))
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bag_tokens = torch.randint(11, (len(bag_slot),), generator=generator)
    return hidden, weight, bag_tokens, torch.tensor(bag_slot, dtype=torch.int64)


def full_cross_entropy(hidden: Tensor, weight: Tensor, bag_tokens: Tensor, bag_slot: Tensor) -> Tensor:
    """Logits of all slots, in the dtype of its arguments."""
    return -(hidden @ weight.T).log_softmax(-1)[bag_slot, bag_tokens]


@every_bag
@every_chunk
def test_bag_cross_entropy_equals_that_of_all_logits(bag_slot: list[int], chunk_slots: int) -> None:
    case = bag_case(bag_slot)
    actual = reference.bag_cross_entropy(*case, chunk_slots=chunk_slots)
    torch.testing.assert_close(actual.double(), full_cross_entropy(*case), rtol=1e-6, atol=1e-6)


@every_bag
@every_chunk
def test_gradients_of_bag_cross_entropy_equal_those_of_all_logits(bag_slot: list[int], chunk_slots: int) -> None:
    case = bag_case(bag_slot)
    up = torch.randn(len(bag_slot), generator=torch.Generator().manual_seed(1))
    actual = torch.autograd.grad(reference.bag_cross_entropy(*case, chunk_slots=chunk_slots), case[:2], up)
    expected = torch.autograd.grad(full_cross_entropy(*case), case[:2], up.double())
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12 * max(1, len(bag_slot)))


@every_bag
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bag_cross_entropy_sums_in_float32(bag_slot: list[int], dtype: torch.dtype) -> None:
    case = bag_case(bag_slot, dtype)
    hidden, weight, *bags = case
    actual = reference.bag_cross_entropy(*case)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(
        actual.double(), full_cross_entropy(hidden.double(), weight.double(), *bags), rtol=0, atol=2e-6
    )


def test_slots_without_a_bag_get_no_gradient() -> None:
    hidden, *others = bag_case([1, 1, 5])
    (grad,) = torch.autograd.grad(reference.bag_cross_entropy(hidden, *others).sum(), hidden)
    assert (grad != 0.0).any(dim=1).tolist() == [False, True, False, False, False, True, False]


def test_bag_cross_entropy_of_large_logits_is_finite() -> None:
    hidden, weight, *bags = bag_case([0, 3])
    nll = reference.bag_cross_entropy(hidden * 1e4, weight, *bags)
    assert torch.isfinite(nll).all()


# Scores of a part of the vocabulary.

every_cut = pytest.mark.parametrize("sizes", [[11], [5, 6], [1, 10], [3, 3, 3, 2]], ids=str)


def cross_entropy_of_parts(case: tuple[Tensor, ...], sizes: list[int], chunk_slots: int) -> Tensor:
    """As the ranks of a tensor group make it of their parts of the vocabulary."""
    hidden, weight, bag_tokens, bag_slot = case
    scores, first = [], 0
    for part in weight.split(sizes):
        scores.append(reference.bag_scores(hidden, part, bag_tokens - first, bag_slot, chunk_slots))
        first += len(part)
    logsumexp, target = torch.stack(scores).double().unbind(1)
    return logsumexp.logsumexp(0) - target.sum(0)


@every_bag
@every_cut
@pytest.mark.parametrize("chunk_slots", [2, 2048])
def test_scores_of_parts_of_the_vocabulary_make_the_cross_entropy_of_all_of_it(
    bag_slot: list[int], sizes: list[int], chunk_slots: int
) -> None:
    case = bag_case(bag_slot)
    up = torch.randn(len(bag_slot), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual, expected = cross_entropy_of_parts(case, sizes, chunk_slots), full_cross_entropy(*case)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)  # parts travel in float32
    gradients = [torch.autograd.grad(nll, case[:2], up) for nll in (actual, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.0, atol=2e-6 * max(1, len(bag_slot)))


@every_bag
def test_scores_are_the_logsumexp_of_the_slot_and_the_logit_of_the_token(bag_slot: list[int]) -> None:
    hidden, weight, bag_tokens, _ = case = bag_case(bag_slot)
    logits = (hidden @ weight.T)[bag_slot]
    expected = torch.stack([logits.logsumexp(-1), logits.gather(1, bag_tokens[:, None])[:, 0]])
    torch.testing.assert_close(reference.bag_scores(*case).double(), expected, rtol=1e-6, atol=1e-6)


@every_chunk
def test_tokens_outside_the_part_have_logit_0_and_no_gradient_of_it(chunk_slots: int) -> None:
    hidden, weight, _, bag_slot = bag_case([0, 0, 2, 3, 3, 6])
    bag_tokens = torch.tensor([-1, 4, -11, 11, 10, 300])
    _, target = reference.bag_scores(hidden, weight, bag_tokens, bag_slot, chunk_slots)
    assert (target != 0.0).tolist() == [False, True, False, False, True, False]
    for_hidden, for_weight = torch.autograd.grad(target.sum(), (hidden, weight))
    assert (for_hidden != 0.0).any(dim=1).tolist() == [True, False, False, True, False, False, False]
    assert (for_weight != 0.0).any(dim=1).nonzero().flatten().tolist() == [4, 10]


@every_bag
@pytest.mark.parametrize("chunk_slots", [1, 2, 3])
def test_chunks_change_no_score_and_no_gradient(bag_slot: list[int], chunk_slots: int) -> None:
    case = bag_case(bag_slot)
    up = torch.randn(2, len(bag_slot), generator=torch.Generator().manual_seed(1))
    whole, chunked = (reference.bag_scores(*case, chunk_slots=n) for n in (2048, chunk_slots))
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(scores, case[:2], up) for scores in (chunked, whole)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.0, atol=1e-12 * max(1, len(bag_slot)))


@pytest.mark.parametrize("num_bag_tokens", [0, 7, 5000])
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_without_values_scores_and_gradients_have_their_shapes(kind: str, num_bag_tokens: int) -> None:
    """A plan and a compiled graph know sizes alone; as many slots as bag tokens, so that chunks are needed too."""
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        hidden, weight = torch.zeros(5000, 5, requires_grad=True), torch.zeros(11, 5, requires_grad=True)
        bag = torch.zeros(num_bag_tokens, dtype=torch.int64)
        scores = reference.bag_scores(hidden, weight, bag, bag)
        gradients = torch.autograd.grad(scores.sum(), (hidden, weight))
    assert scores.shape == (2, num_bag_tokens)
    assert [gradient.shape for gradient in gradients] == [(5000, 5), (11, 5)]
    assert {tensor.device.type for tensor in (scores, *gradients)} == {"cpu" if kind == "fake" else "meta"}
