"""The entry point: what it refuses, and that it computes what `reference` defines."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen

from oneflow_kernels.packed_attention import packed_attention

CU_SEQLENS = torch.tensor([0, 5, 5, 8], dtype=torch.int32)


def rows(num_heads: int, num_kv_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(8, heads, 6, generator=generator).to(dtype) for heads in (num_heads, num_kv_heads, num_kv_heads)
    ]


def test_query_heads_must_be_a_multiple_of_key_heads() -> None:
    with pytest.raises(ValueError) as error:
        packed_attention(*rows(4, 3), CU_SEQLENS, 5)
    assert str(error.value) == "query has 4 heads, not a multiple of key's 3"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_each_sequence_attends_to_itself(num_kv_heads: int, dtype: torch.dtype, is_causal: bool) -> None:
    """Against torch's own attention of one sequence at a time; query head i reads key head i // group."""
    query, key, value = rows(4, num_kv_heads, dtype)
    out = packed_attention(query, key, value, CU_SEQLENS, 5, is_causal)
    group = 4 // num_kv_heads
    for first, last in ((0, 5), (5, 8)):
        q = query[first:last].transpose(0, 1)
        k, v = (x[first:last].repeat_interleave(group, dim=1).transpose(0, 1) for x in (key, value))
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(0, 1)
        torch.testing.assert_close(out[first:last], expected, rtol=0.0, atol=16 * torch.finfo(dtype).eps)


def test_output_keeps_the_dtype_of_its_input() -> None:
    assert packed_attention(*rows(2, 1, torch.bfloat16), CU_SEQLENS, 5).dtype == torch.bfloat16


def test_a_sequence_of_one_row_returns_its_value() -> None:
    query, key, value = (x[:1] for x in rows(4, 2))
    out = packed_attention(query, key, value, torch.tensor([0, 1], dtype=torch.int32), 1)
    torch.testing.assert_close(out, value.repeat_interleave(2, dim=1))


def test_order_of_sequences_does_not_matter() -> None:
    query, key, value = rows(4, 2)
    swapped = torch.tensor([5, 6, 7, 0, 1, 2, 3, 4])
    out = packed_attention(query, key, value, CU_SEQLENS, 5)
    other = packed_attention(*(x[swapped] for x in (query, key, value)), torch.tensor([0, 3, 8], dtype=torch.int32), 5)
    torch.testing.assert_close(out[swapped], other)


@pytest.mark.parametrize(("is_causal", "window"), [(False, (-1, -1)), (True, (-1, 0))])
def test_the_kernel_of_cuda_is_asked_for_the_same_rows(
    is_causal: bool, window: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CUDA only the call can be checked; its arguments are those of torch's own signature."""
    signature = inspect.signature(varlen.varlen_attn)
    calls: list[inspect.BoundArguments] = []

    def record(*arguments: Any, **named: Any) -> Tensor:
        calls.append(signature.bind(*arguments, **named))
        return torch.zeros(8, 4, 6)

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(varlen, "varlen_attn", record)
    packed_attention(*rows(4, 2, torch.bfloat16), CU_SEQLENS, 5, is_causal)
    (call,) = calls
    assert call.arguments["window_size"] == window
    assert (call.arguments["max_q"], call.arguments["max_k"]) == (5, 5)
