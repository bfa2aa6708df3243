"""What is listed to be compiled for every GPU; the numbers are those of `test_interval_attention`."""

from __future__ import annotations

from oneflow_kernels import attention_kernels
from tests.kernels.kernel_checks import assert_variants_are_whole


def test_every_kernel_is_listed_with_all_its_arguments() -> None:
    assert_variants_are_whole(attention_kernels)
