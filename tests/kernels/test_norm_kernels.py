"""What is listed to be compiled for every GPU; the numbers are those of `test_norm`."""

from __future__ import annotations

from oneflow_kernels import norm, norm_kernels
from tests.kernels.kernel_checks import assert_variants_are_whole


def test_every_kernel_is_listed_with_all_its_arguments() -> None:
    assert_variants_are_whole(norm_kernels)


def test_there_is_a_launch_for_every_width_that_is_not_left_to_the_definition() -> None:
    for table in (norm_kernels.FORWARD, norm_kernels.BACKWARD):
        assert max(table) == norm.MAX_WIDTH
        for width in (1, 512, 513, 4096, 4097, 8192):
            for launch in norm_kernels.launches_for(table, width).on_target("cuda:90"):
                assert width <= launch.tiles["COLS"] <= max(512, 2 * width - 2)
