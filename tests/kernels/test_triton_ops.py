from __future__ import annotations

from typing import no_type_check

import pytest
import torch
import triton
import triton.language as tl

from oneflow_kernels.triton_ops import cast, dot

SIZE = 16


@no_type_check
@triton.jit
def product_kernel(a, b, out, size: tl.constexpr):
    place = tl.arange(0, size)[:, None] * size + tl.arange(0, size)[None, :]
    tl.store(out + place, cast(dot(tl.load(a + place), tl.load(b + place)), out.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_summed_in_float32_and_rounded_to_nearest(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(SIZE, SIZE, dtype=dtype)
    product_kernel[(1,)](a, b, out, SIZE)
    truth = a.double() @ b.double()
    assert (out.double() - truth).abs().max() <= 0.5 * torch.finfo(dtype).eps * truth.abs().max() + 1e-5


@no_type_check
@triton.jit
def cast_kernel(x, out, size: tl.constexpr):
    place = tl.arange(0, size)
    tl.store(out + place, cast(tl.load(x + place), out.dtype.element_ty))


def test_rounding_is_torchs_to_the_bit() -> None:
    ties = 1.0 + torch.arange(-4.0, 4.0) * 2.0**-8  # every other one lies between two bfloat16s
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3.0e38, 1e-30, -1.0 - 2.0**-9])
    x = torch.cat([ties, odd])
    out = torch.empty(len(x), dtype=torch.bfloat16)
    cast_kernel[(1,)](x, out, len(x))
    torch.testing.assert_close(out, x.bfloat16(), rtol=0.0, atol=0.0, equal_nan=True)
