"""The plain definitions are what the model computes, to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oneflow_dist.model.embeddings import gather_rows
from oneflow_dist.model.linear import RMSNorm
from oneflow_dist.model.trunk import rotate
from oneflow_kernels import reference_fused

every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
ROW_IMAGE = torch.tensor([2, 0, 0, 2, 1, 2])


@every_dtype
def test_norm_and_gate_are_those_of_a_block(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 6, 8).to(dtype)
    shift, scale, gate = torch.randn(3, 2, 8).to(dtype)
    norm = RMSNorm(8, eps=1e-5, dtype=dtype)
    torch.nn.init.normal_(norm.weight)
    of_rows = [
        gather_rows(F.pad(part, (0, 0, 0, 1), value=neutral), ROW_IMAGE)
        for part, neutral in ((shift, 0.0), (scale, 1.0), (gate, 1.0))
    ]
    h = reference_fused.modulated_rms_norm(x, norm.weight, shift, scale, ROW_IMAGE, 1e-5)
    assert torch.equal(h, norm(x) * of_rows[1] + of_rows[0])
    assert torch.equal(reference_fused.modulated_rms_norm(x, norm.weight, None, None, None, 1e-5), norm(x))
    assert torch.equal(reference_fused.gated_add(x, y, gate, ROW_IMAGE), x + of_rows[2] * y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rotary_is_that_of_attention(dtype: torch.dtype) -> None:
    query, key = torch.randn(6, 4, 8).to(dtype), torch.randn(6, 2, 8).to(dtype)
    angle = torch.randn(6, 1, 4)
    found = reference_fused.rotary(query, key, angle.cos(), angle.sin())
    for ours, x in zip(found, (query, key), strict=True):
        assert torch.equal(ours, rotate(x, angle.cos(), angle.sin()))


def test_rotary_in_float64_keeps_all_its_digits() -> None:
    x, angle = torch.randn(6, 4, 8, dtype=torch.float64), torch.randn(6, 1, 4, dtype=torch.float64)
    turned, _ = reference_fused.rotary(x, x, angle.cos(), angle.sin())
    pairs = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], -1), rtol=0.0, atol=1e-14)


@every_dtype
def test_swiglu_is_that_of_the_mlp(dtype: torch.dtype) -> None:
    gate, up = torch.randn(2, 6, 8).to(dtype)
    assert torch.equal(reference_fused.swiglu(gate, up), F.silu(gate) * up)
