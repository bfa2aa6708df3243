"""What all tests of kernels do: run them where no GPU is, and hold their errors against those of the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@contextmanager
def interpreted_kernels() -> Iterator[None]:
    """Triton's kernels, interpreted; what a kernel leaves unwritten is NaN, or far outside."""
    empty = torch.empty

    def poisoned(*sizes: Any, **options: Any) -> Tensor:
        found = empty(*sizes, **options)
        return found.fill_(float("nan") if found.is_floating_point() else torch.iinfo(found.dtype).max)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFLOW_KERNELS", "triton")
        patch.setattr(torch, "empty", poisoned)
        yield


Function = Callable[..., Any]  # of tensors and numbers; a tensor or a tuple of tensors


def results(function: Function, inputs: Sequence[Any], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Outputs, and gradients of all inputs that need one; for a slope that is the same at every call.

    Args:
        dtype: what floating point inputs that need a gradient are widened to.
    """
    inputs = [
        x.detach().to(dtype or x.dtype).requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x
        for x in inputs
    ]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    slopes = [torch.randn(output.shape, generator=generator).bfloat16().to(output.dtype) for output in outputs]
    learned = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, learned, slopes)]


def assert_as_exact_as(definition: Function, function: Function, inputs: Sequence[Any]) -> None:
    """In every result, forward and backward, at most twice the error of the definition, and what rounding adds."""
    exact = results(definition, inputs, torch.float64)
    plain = results(definition, inputs)
    with interpreted_kernels():
        found = results(function, inputs)
    for i, (ours, theirs, truth) in enumerate(zip(found, plain, exact, strict=True)):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if truth.numel():
            largest = float(truth.abs().max())
            rounding = largest * (torch.finfo(ours.dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps)
            error, allowed = (float((x.double() - truth).abs().max()) for x in (ours, theirs))
            assert error <= 2 * allowed + rounding, f"result {i}: {error} against {allowed}, largest {largest}"


def assert_same_bits_again(function: Function, inputs: Sequence[Any]) -> None:
    with interpreted_kernels():
        first, second = (results(function, inputs) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert not one.isnan().any()
        assert torch.equal(one, other)
