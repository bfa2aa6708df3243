"""Rotary positions against their definition in float64."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oneflow_kernels import reference_fused
from oneflow_kernels.rotary import rotary
from tests.kernels.kernel_checks import (
    DTYPES,
    assert_as_exact_as,
    assert_same_bits_again,
    interpreted_kernels,
    results,
)
from tests.launching import Launcher


def make(
    num_rows: int, num_heads: int, num_kv_heads: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_rows)
    angle = 10.0 * torch.randn(num_rows, 1, width // 2, generator=generator)
    query, key = (
        torch.randn(num_rows, heads, width, generator=generator).to(dtype).requires_grad_()
        for heads in (num_heads, num_kv_heads)
    )
    return query, key, angle.cos(), angle.sin()


@settings(max_examples=15)
@given(
    num_rows=st.integers(0, 5),
    num_heads=st.sampled_from([1, 3, 17, 32]),
    num_kv_heads=st.sampled_from([1, 2, 20]),
    width=st.sampled_from([2, 6, 64, 80, 128, 256]),
    dtype=st.sampled_from(DTYPES),
)
def test_heads_of_any_number_and_width_are_as_exact_as_by_the_definition(
    num_rows: int, num_heads: int, num_kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    assert_as_exact_as(reference_fused.rotary, rotary, make(num_rows, num_heads, num_kv_heads, width, dtype))


def test_the_gradient_is_turned_back_by_the_same_angle() -> None:
    query, key, cos, sin = make(3, 2, 1, 8)
    with interpreted_kernels():
        turned = rotary(query, key, cos, sin)
        back = torch.autograd.grad(turned, (query, key), turned)
    torch.testing.assert_close(back, (query, key), rtol=1e-5, atol=1e-5)


def test_query_and_key_may_be_cut_from_one_product_and_their_gradients_have_any_strides() -> None:
    query, key, cos, sin = make(4, 3, 2, 8)
    product = torch.cat([query, key, key], 1).detach().requires_grad_()
    results = []
    with interpreted_kernels():
        for cut in (product, product.transpose(0, 2).contiguous().transpose(0, 2)):
            out = rotary(*cut.split([3, 2, 2], 1)[:2], cos, sin)
            slopes = out[0].detach().transpose(0, 2).contiguous().transpose(0, 2), torch.ones(()).expand(4, 2, 8)
            results.append([*out, *torch.autograd.grad(out, product, slopes)])
        expected = rotary(query, key, cos, sin)
    for found in results:
        assert all(x.is_contiguous() for x in found[:2])
        torch.testing.assert_close(found[:2], list(expected), rtol=0.0, atol=0.0)
        torch.testing.assert_close(found[2], results[0][2], rtol=0.0, atol=0.0)
    assert (results[0][2][:, 5:] == 0.0).all()
    torch.testing.assert_close(results[0][2][:, :3], query, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    assert_same_bits_again(rotary, make(3, 3, 1, 10, dtype))


@pytest.mark.parametrize(("width", "dtype"), [(8, torch.float64), (258, torch.float32)])
def test_what_no_kernel_takes_is_computed_by_the_definition(width: int, dtype: torch.dtype) -> None:
    inputs = make(3, 2, 1, width, dtype)
    with interpreted_kernels():
        found = results(rotary, inputs)
    for ours, theirs in zip(found, results(reference_fused.rotary, inputs), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("is_inverse", [False, True])
def test_the_operator_keeps_what_torch_asks_of_an_operator(is_inverse: bool) -> None:
    torch.library.opcheck(torch.ops.oneflow.rotary.default, (*make(3, 2, 1, 8), is_inverse))


def compiled_and_eager(choice: str) -> tuple[list[Tensor], list[Tensor]]:
    """On a rank of its own, whose shapes nothing checks."""
    os.environ["ONEFLOW_KERNELS"] = choice
    compiled = torch.compile(rotary, fullgraph=True, backend="aot_eager")  # the graph, without its code
    return results(compiled, make(3, 4, 2, 8)), results(rotary, make(3, 4, 2, 8))


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_compiled_it_is_one_graph_and_computes_what_eager_does(choice: str, launcher: Launcher) -> None:
    ((compiled, eager),) = launcher.call(1, compiled_and_eager, choice)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_dtypes_must_agree() -> None:
    query, key, cos, sin = make(3, 2, 1, 8)
    with pytest.raises(ValueError) as error:
        rotary(query, key.bfloat16(), cos, sin)
    assert str(error.value) == "query is torch.float32 but key is torch.bfloat16; cast one of them"


def test_angles_get_no_gradient() -> None:
    query, key, cos, sin = make(3, 2, 1, 8)
    with pytest.raises(ValueError) as error:
        rotary(query, key, cos, sin.requires_grad_())
    assert str(error.value) == "rotary: cos and sin get no gradient; detach them"
