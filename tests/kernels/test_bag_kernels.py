from __future__ import annotations

import inspect

import pytest
import torch

from oneflow_kernels import bag_kernels, fused_logits_kernels
from oneflow_kernels.backend import Variant

VARIANTS = [*bag_kernels.variants(), *fused_logits_kernels.variants()]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.name}, {variant.targets[0]}")
def test_a_variant_names_the_arguments_of_its_kernel(variant: Variant) -> None:
    assert list(variant.signature) == list(inspect.signature(variant.kernel.fn).parameters)  # type: ignore[attr-defined]
    constants = {name for name, kind in variant.signature.items() if kind == "constexpr"}
    assert constants == {*variant.constants, *variant.launch.tiles}


def test_every_kernel_has_variants_of_every_dtype() -> None:
    for kernel in ("softmax", "gradient of hidden", "gradient of weight", "logits"):
        for dtype in ("bfloat16", "float16", "float32"):
            assert any(f"bag {kernel}, {dtype}" in variant.name for variant in VARIANTS), (kernel, dtype)


def test_probabilities_fit_in_their_dtype_until_they_are_measured_anew() -> None:
    for dtype, reach in bag_kernels.REACH.items():
        assert torch.tensor(reach).exp() < torch.finfo(dtype).max / 2.0
