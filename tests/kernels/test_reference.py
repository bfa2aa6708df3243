"""The plain definitions against textbook formulas in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from oneflow_kernels import reference

LENGTHS = {
    "odd": [3, 1, 7, 5],
    "empty": [0, 4, 0, 0, 9, 0],
    "one row": [1],
    "one sequence": [13],
    "many lengths": [1, 2, 3, 4, 6, 9, 12, 17, 2, 1],
}
every_layout = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
RULES = ("both ways", "causal", "blocks", "kept keys")
every_rule = pytest.mark.parametrize("rule", RULES)
every_group = pytest.mark.parametrize("num_kv_heads", [1, 2, 4])


def cumulate(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def rows_and_rule(
    rule: str, lengths: list[int], num_kv_heads: int, dtype: torch.dtype = torch.float64, width: int = 6
) -> tuple[list[Tensor], dict[str, Any]]:
    """Query of four heads, key and value; and what says who sees whom.

    Ends of blocks are anywhere, also inside of a block of others. Keys are kept of most sequences, also of those
    without a row, but for the last.
    """
    generator = torch.Generator().manual_seed(sum(lengths))
    settings: dict[str, Any] = {"cu_seqlens": cumulate(lengths)}
    num_rows = num_keys = sum(lengths)
    if rule == "causal":
        settings["is_causal"] = True
    if rule == "blocks":
        row, end = torch.arange(num_rows), settings["cu_seqlens"][1:].repeat_interleave(torch.tensor(lengths))
        share = torch.rand(num_rows, generator=generator)
        settings["row_end"] = (row + 1 + share * (end - row)).int().minimum(end).cummax(0).values
    if rule == "kept keys":
        kept = torch.randint(-2, 7, (len(lengths),), generator=generator).clamp(min=0).tolist()
        settings["key_seqlens"] = cumulate([*(a + b for a, b in zip(lengths[:-1], kept, strict=False)), lengths[-1]])
        num_keys = int(settings["key_seqlens"][-1])
    shapes = ((num_rows, 4), (num_keys, num_kv_heads), (num_keys, num_kv_heads))
    rows = [torch.randn(*shape, width, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [x.requires_grad_() for x in rows], settings


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    is_causal: bool = False,
    row_end: Tensor | None = None,
    key_seqlens: Tensor | None = None,
) -> Tensor:
    """All pairs of rows and keys under a mask, in the dtype of its arguments."""
    of_row, of_key = (
        torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff())
        for ends in (cu_seqlens, cu_seqlens if key_seqlens is None else key_seqlens)
    )
    is_seen = of_row[:, None] == of_key
    if is_causal:
        is_seen = is_seen.tril()
    if row_end is not None:
        is_seen = is_seen & (torch.arange(len(key)) < row_end[:, None])
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,uhd->htu", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("htu,uhd->thd", scores.masked_fill(~is_seen, -torch.inf).softmax(-1), value)


@every_layout
@every_group
@every_rule
def test_attention_equals_dense_attention_under_a_mask(lengths: list[int], num_kv_heads: int, rule: str) -> None:
    rows, settings = rows_and_rule(rule, lengths, num_kv_heads)
    actual = reference.packed_attention(*rows, **settings)
    torch.testing.assert_close(actual, dense_attention(*rows, **settings), rtol=0.0, atol=1e-12)


@every_layout
@every_group
@every_rule
def test_gradients_of_attention_equal_those_of_dense_attention(
    lengths: list[int], num_kv_heads: int, rule: str
) -> None:
    rows, settings = rows_and_rule(rule, lengths, num_kv_heads)
    up = torch.randn(sum(lengths), 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = torch.autograd.grad(reference.packed_attention(*rows, **settings), rows, up)
    expected = torch.autograd.grad(dense_attention(*rows, **settings), rows, up)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)


@every_layout
@every_group
@every_rule
def test_written_out_gradients_of_attention_are_those_of_autograd(
    lengths: list[int], num_kv_heads: int, rule: str
) -> None:
    rows, settings = rows_and_rule(rule, lengths, num_kv_heads)
    up = torch.randn(sum(lengths), 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(dense_attention(*rows, **settings), rows, up)
    actual = reference.packed_attention_backward(up, *(row.detach() for row in rows), **settings)
    assert all(gradient.is_contiguous() for gradient in actual)  # as the fake ones of a compiled graph are
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("lengths", [[5, 5], [6, 5], [1]])
def test_attention_to_all_rows_is_torchs_own_of_padded_sequences_to_the_bit(lengths: list[int]) -> None:
    """Sequences as long as each other have no mask, and others one of padding alone."""
    rows, settings = rows_and_rule("both ways", lengths, 2, torch.float32, 8)
    q, k, v = (pad_sequence(x.detach().split(lengths), batch_first=True).transpose(1, 2) for x in rows)
    is_real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = None if is_real.all() else is_real[:, None, None]
    expected = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)[is_real]
    assert torch.equal(reference.packed_attention(*rows, **settings), expected)


def test_rows_without_a_key_get_zeros() -> None:
    query, key, value = torch.randn(3, 2, 4), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    cu_seqlens, key_seqlens = (torch.tensor(ends, dtype=torch.int32) for ends in ([0, 2, 3], [0, 2, 2]))
    out = reference.packed_attention(query, key, value, cu_seqlens, key_seqlens=key_seqlens)
    assert (out[2] == 0.0).all()
    assert out[:2].ne(0.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_layout
@every_rule
def test_error_of_attention_is_at_most_twice_that_of_the_same_formula(
    lengths: list[int], dtype: torch.dtype, rule: str
) -> None:
    rows, settings = rows_and_rule(rule, lengths, 2, dtype)
    exact = dense_attention(*(row.double() for row in rows), **settings)
    error = (reference.packed_attention(*rows, **settings) - exact).abs().max()
    plain = (dense_attention(*rows, **settings) - exact).abs().max()
    assert error <= 2.0 * plain + torch.finfo(dtype).eps


@pytest.mark.parametrize("lengths", [[2, 0, 3], [1], [4, 1, 2]])
@every_rule
def test_gradients_of_attention_are_those_of_finite_differences(lengths: list[int], rule: str) -> None:
    rows, settings = rows_and_rule(rule, lengths, 2, width=2)
    assert torch.autograd.gradcheck(lambda *x: reference.packed_attention(*x, **settings), rows)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any), st.sampled_from([1, 2, 4]))
@pytest.mark.parametrize("rule", RULES)
def test_attention_of_any_layout(rule: str, lengths: list[int], num_kv_heads: int) -> None:
    rows, settings = rows_and_rule(rule, lengths, num_kv_heads, width=4)
    actual = reference.packed_attention(*rows, **settings)
    torch.testing.assert_close(actual, dense_attention(*rows, **settings), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("rule", ["both ways", "causal", "blocks"])
def test_no_row_sees_another_sequence(rule: str) -> None:
    """The other sequences' outputs and gradients are the same to the bit."""
    lengths = [3, 5, 1, 4]
    rows, settings = rows_and_rule(rule, lengths, 2, torch.float32)
    changed = [row.detach().clone() for row in rows]
    for row in changed:
        row[3:8] += 1.0
    before, after = (reference.packed_attention(*x, **settings) for x in (rows, changed))
    others = torch.tensor([*range(3), *range(8, 13)])
    assert torch.equal(before[others], after[others])
    assert not torch.isclose(before[3:8], after[3:8]).all()
    grads = torch.autograd.grad(before[others].sum(), rows)
    assert all((grad[3:8] == 0.0).all() for grad in grads)
