"""Norm with modulation, and the gated residual, against their definitions in float64."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oneflow_kernels import norm, reference_fused
from oneflow_kernels.norm import gated_add, modulated_rms_norm
from tests.kernels.kernel_checks import (
    DTYPES,
    assert_as_exact_as,
    assert_same_bits_again,
    interpreted_kernels,
    results,
)
from tests.launching import Launcher

EPS = 1e-5
OPERATORS = torch.ops.oneflow
Inputs = tuple[Any, ...]


def image_of_rows(patches: list[int], gaps: list[int]) -> Tensor:
    """As many rows of each image as it has patches, with rows of text before, between and after."""
    num_images = len(patches)
    images = [image for pair in zip([num_images] * num_images, range(num_images), strict=True) for image in pair]
    counts = [count for pair in zip(gaps, patches, strict=False) for count in pair]
    return torch.tensor([*images, num_images]).repeat_interleave(torch.tensor([*counts, gaps[-1]]))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, Tensor]:
    """How many images there are, and the image of each row, of some rows from first to last."""
    patches = draw(st.lists(st.integers(0, 9), max_size=4))
    gaps = draw(st.lists(st.integers(0, 3), min_size=len(patches) + 1, max_size=len(patches) + 1))
    rows = image_of_rows(patches, gaps)
    cut = draw(st.integers(0, len(rows) // 3)), draw(st.integers(0, len(rows) // 3))
    return len(patches), rows[cut[0] : len(rows) - cut[1]]


def normal(num_rows: int, width: int, num_lines: list[int], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_rows * width)
    sizes = [(lines, width) if lines >= 0 else (width,) for lines in num_lines]
    made = [1.0 + torch.randn(size, generator=generator) for size in sizes]
    return [x.to(dtype).requires_grad_() for x in made]


def norm_inputs(num_images: int, row_image: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Inputs:
    num_rows = len(row_image)
    return *normal(num_rows, width, [num_rows, -1, num_images, num_images], dtype), row_image, EPS


def gate_inputs(num_images: int, row_image: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Inputs:
    num_rows = len(row_image)
    return *normal(num_rows, width, [num_rows, num_rows, num_images], dtype), row_image


FUNCTIONS: list[tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Inputs]]] = [
    (modulated_rms_norm, reference_fused.modulated_rms_norm, norm_inputs),
    (gated_add, reference_fused.gated_add, gate_inputs),
]
of_both = pytest.mark.parametrize(("function", "definition", "make"), FUNCTIONS, ids=["norm", "gate"])
PACK = image_of_rows([7, 0, 2, 11], [3, 0, 1, 0, 2])  # 26 rows


@of_both
@settings(max_examples=12)
@given(layout=layouts(), width=st.sampled_from([32, 33, 300]), dtype=st.sampled_from(DTYPES), chunk=st.integers(1, 9))
def test_rows_of_any_layout_are_as_exact_as_by_the_definition(
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    make: Callable[..., Inputs],
    layout: tuple[int, Tensor],
    width: int,
    dtype: torch.dtype,
    chunk: int,
) -> None:
    """Chunks of few rows, so that images go over from one to the next, and chunks have several images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "MIN_CHUNK_ROWS", chunk)
        assert_as_exact_as(definition, function, make(*layout, width, dtype))


EDGES = {
    "no images": (0, torch.zeros(5, dtype=torch.int64)),
    "all rows of one image": (1, torch.zeros(20, dtype=torch.int64)),
    "no row has an image": (2, torch.full((3,), 2)),
    "images side by side": (3, torch.tensor([0, 1, 2, 2])),
    "one row": (1, torch.zeros(1, dtype=torch.int64)),
    "no rows": (2, torch.zeros(0, dtype=torch.int64)),
    "begins and ends inside images": (4, torch.tensor([1, 1, 4, 2, 4, 3, 3])),
}


@of_both
@pytest.mark.parametrize("layout", EDGES.values(), ids=EDGES)
def test_edges_are_as_exact_as_by_the_definition(
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    make: Callable[..., Inputs],
    layout: tuple[int, Tensor],
) -> None:
    assert_as_exact_as(definition, function, make(*layout, 32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "width"), [(0, 32), (1, 32), (37, 48), (3, 1030)])
def test_a_norm_without_modulation_is_as_exact_as_the_definition(num_rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight = normal(num_rows, width, [num_rows, -1], dtype)
    assert_as_exact_as(reference_fused.modulated_rms_norm, modulated_rms_norm, (x, weight, None, None, None, EPS))


@pytest.mark.parametrize("width", [4096, 8192])
def test_the_widest_rows_are_as_exact_as_by_the_definition(width: int) -> None:
    layout = 2, torch.tensor([2, 0, 0, 1])
    assert_as_exact_as(reference_fused.modulated_rms_norm, modulated_rms_norm, norm_inputs(*layout, width))
    assert_as_exact_as(reference_fused.gated_add, gated_add, gate_inputs(*layout, width))


@of_both
def test_parts_of_a_pack_compute_what_the_whole_does(
    function: Callable[..., Tensor], definition: Callable[..., Tensor], make: Callable[..., Inputs]
) -> None:
    """Rows bit by bit; gradients of weight, shift, scale and gate are parts of a sum, as of ranks of a tensor group."""
    inputs = make(4, PACK, 32)
    per_row = [isinstance(x, Tensor) and len(x) == len(PACK) for x in inputs]
    learned = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    slope = torch.randn(len(PACK), 32, generator=torch.Generator().manual_seed(0))
    found = []
    with interpreted_kernels(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "MIN_CHUNK_ROWS", 4)
        for first, last in ((0, 26), (0, 5), (5, 26)):
            part = [x[first:last] if is_cut else x for x, is_cut in zip(inputs, per_row, strict=True)]
            out = function(*part)
            found.append([out, *torch.autograd.grad(out, learned, slope[first:last])])
    whole, left, right = found
    assert torch.equal(torch.cat([left[0], right[0]]), whole[0])
    for i, expected in enumerate(whole[1:], start=1):
        torch.testing.assert_close(left[i] + right[i], expected, rtol=1e-5, atol=1e-5)


@of_both
def test_lines_may_be_cut_from_a_wider_product(
    function: Callable[..., Tensor], definition: Callable[..., Tensor], make: Callable[..., Inputs]
) -> None:
    inputs = make(4, PACK, 32)
    wider = [
        torch.cat([x, x, x], 1).chunk(3, 1)[1] if isinstance(x, Tensor) and x.shape == (4, 32) else x for x in inputs
    ]
    assert any(isinstance(x, Tensor) and not x.is_contiguous() for x in wider)
    with interpreted_kernels():
        for found, expected in zip(results(function, wider), results(function, inputs), strict=True):
            assert torch.equal(found, expected)


@of_both
def test_rows_and_slopes_may_have_any_strides(
    function: Callable[..., Tensor], definition: Callable[..., Tensor], make: Callable[..., Inputs]
) -> None:
    inputs = [x.t().contiguous().t() if isinstance(x, Tensor) and x.ndim == 2 else x for x in make(4, PACK, 32)]
    learned = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    expected = torch.autograd.grad(definition(*inputs).sum(), learned)
    with interpreted_kernels():
        found = torch.autograd.grad(function(*inputs).sum(), learned)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@of_both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_two_runs_give_the_same_bits(
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    make: Callable[..., Inputs],
    dtype: torch.dtype,
) -> None:
    assert_same_bits_again(function, make(4, PACK, 32, dtype))


@of_both
@pytest.mark.parametrize(("width", "dtype"), [(4, torch.float64), (8193, torch.float32)])
def test_what_no_kernel_takes_is_computed_by_the_definition(
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    make: Callable[..., Inputs],
    width: int,
    dtype: torch.dtype,
) -> None:
    inputs = make(1, torch.tensor([1, 0]), width, dtype)
    with interpreted_kernels():
        found = results(function, inputs)
    for ours, theirs in zip(found, results(definition, inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_the_operators_keep_what_torch_asks_of_an_operator() -> None:
    inputs = norm_inputs(2, torch.tensor([0, 0, 2, 1]), 8)
    x, weight, *_ = inputs
    plain = (x, weight, None, None, None, EPS)
    for tensors in (inputs, plain):
        torch.library.opcheck(OPERATORS.modulated_rms_norm.default, tensors)
        detached = [t.detach() if isinstance(t, Tensor) else t for t in (x, *tensors)]
        torch.library.opcheck(OPERATORS.modulated_rms_norm_backward.default, detached)
    inputs = gate_inputs(2, torch.tensor([0, 0, 2, 1]), 8)
    torch.library.opcheck(OPERATORS.gated_add.default, inputs)
    torch.library.opcheck(OPERATORS.gated_add_backward.default, [t.detach() for t in inputs])


def compiled_and_eager(choice: str) -> list[tuple[list[Tensor], list[Tensor]]]:
    """On a rank of its own, whose shapes nothing checks."""
    os.environ["ONEFLOW_KERNELS"] = choice
    pairs = []
    for function, _, make in FUNCTIONS:
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")  # the graph, without its code
        inputs = make(2, torch.tensor([2, 0, 0, 2, 1]), 32)
        pairs.append((results(compiled, inputs), results(function, inputs)))
    return pairs


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_compiled_they_are_one_graph_and_compute_what_eager_does(choice: str, launcher: Launcher) -> None:
    (pairs,) = launcher.call(1, compiled_and_eager, choice)
    assert len(pairs) == 2
    for compiled, eager in pairs:
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


def test_dtypes_must_agree() -> None:
    x, rows = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError) as error:
        modulated_rms_norm(x, torch.zeros(4).bfloat16(), None, None, None, EPS)
    assert str(error.value) == "x is torch.float32 but weight is torch.bfloat16; cast one of them"
    with pytest.raises(ValueError) as error:
        gated_add(x, x, torch.zeros(1, 4).half(), rows)
    assert str(error.value) == "x is torch.float32 but gate is torch.float16; cast one of them"


def test_shift_scale_and_images_go_together() -> None:
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError) as error:
        modulated_rms_norm(x, torch.zeros(4), torch.zeros(1, 4), torch.zeros(1, 4), None, EPS)
    assert str(error.value) == ("modulated_rms_norm: shift, scale and row_image go together; give all three or none")
