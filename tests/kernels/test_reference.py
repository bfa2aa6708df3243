"""The plain definitions against textbook formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

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
