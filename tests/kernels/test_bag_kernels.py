"""What is listed to be compiled for every GPU; the numbers are those of `test_bag_operations`."""

from __future__ import annotations

import torch

from oneflow_kernels import bag_kernels
from tests.kernels.kernel_checks import assert_variants_are_whole


def test_every_kernel_is_listed_with_all_its_arguments() -> None:
    assert_variants_are_whole(bag_kernels)


def test_probabilities_fit_in_their_dtype_until_they_are_measured_anew() -> None:
    for dtype, reach in bag_kernels.REACH.items():
        assert torch.tensor(reach).exp() < torch.finfo(dtype).max / 2.0
