"""SwiGLU against its definition in float64."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oneflow_kernels import reference_fused
from oneflow_kernels.swiglu import swiglu
from tests.kernels.kernel_checks import (
    DTYPES,
    assert_as_exact_as,
    assert_same_bits_again,
    interpreted_kernels,
    results,
)
from tests.launching import Launcher


def make(num_rows: int, width: int, dtype: torch.dtype = torch.float32, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    gate, up = (spread * torch.randn(num_rows, width, generator=generator) for _ in range(2))
    return gate.to(dtype).requires_grad_(), up.to(dtype).requires_grad_()


@settings(max_examples=12)
@given(num_rows=st.integers(0, 9), width=st.sampled_from([1, 32, 33, 1024, 1100]), dtype=st.sampled_from(DTYPES))
def test_rows_of_any_number_and_width_are_as_exact_as_by_the_definition(
    num_rows: int, width: int, dtype: torch.dtype
) -> None:
    assert_as_exact_as(reference_fused.swiglu, swiglu, make(num_rows, width, dtype))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, of the interpreter
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gates_neither_overflow_nor_lose_their_gradient(dtype: torch.dtype) -> None:
    """sigmoid is 0 or 1 there."""
    gate = torch.tensor([[-200.0, -100.0, 0.0, 100.0, 200.0]], dtype=dtype, requires_grad=True)
    assert_as_exact_as(reference_fused.swiglu, swiglu, (gate, torch.ones_like(gate).requires_grad_()))


def test_gate_and_up_may_be_cut_from_one_product_and_the_slope_have_any_strides() -> None:
    gate, up = make(5, 40)
    product = torch.cat([gate, up], 1).detach().requires_grad_()
    found = []
    with interpreted_kernels():
        for cut in (product, product.t().contiguous().t()):
            out = swiglu(*cut.chunk(2, 1))
            found.append([out.detach(), *torch.autograd.grad(out.sum(), product)])
        out = swiglu(gate, up)
        expected = [out.detach(), torch.cat(torch.autograd.grad(out.sum(), (gate, up)), 1)]
    for one in found:
        torch.testing.assert_close(one, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    assert_same_bits_again(swiglu, make(3, 50, dtype))


def test_only_gate_and_up_are_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []
    gate, up = make(3, 8)
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)  # type: ignore[func-returns-value]
    with interpreted_kernels(), keep:
        swiglu(gate, up)
    assert [t.data_ptr() for t in kept] == [gate.data_ptr(), up.data_ptr()]


def test_float64_is_computed_by_the_definition() -> None:
    inputs = make(3, 8, torch.float64)
    with interpreted_kernels():
        found = results(swiglu, inputs)
    for ours, theirs in zip(found, results(reference_fused.swiglu, inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_the_operators_keep_what_torch_asks_of_an_operator() -> None:
    gate, up = make(3, 8)
    torch.library.opcheck(torch.ops.oneflow.swiglu.default, (gate, up))
    torch.library.opcheck(torch.ops.oneflow.swiglu_backward.default, (up.detach(), gate.detach(), up.detach()))


def compiled_and_eager(choice: str) -> tuple[list[Tensor], list[Tensor]]:
    """On a rank of its own, whose shapes nothing checks."""
    os.environ["ONEFLOW_KERNELS"] = choice
    compiled = torch.compile(swiglu, fullgraph=True, backend="aot_eager")  # the graph, without its code
    return results(compiled, make(3, 8)), results(swiglu, make(3, 8))


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_compiled_it_is_one_graph_and_computes_what_eager_does(choice: str, launcher: Launcher) -> None:
    ((compiled, eager),) = launcher.call(1, compiled_and_eager, choice)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_dtypes_must_agree() -> None:
    gate, up = make(3, 8)
    with pytest.raises(ValueError) as error:
        swiglu(gate, up.half())
    assert str(error.value) == "gate is torch.float32 but up is torch.float16; cast one of them"
