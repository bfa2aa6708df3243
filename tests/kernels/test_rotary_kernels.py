"""What is listed to be compiled for every GPU; the numbers are those of `test_rotary`."""

from __future__ import annotations

from oneflow_kernels import rotary, rotary_kernels
from tests.kernels.kernel_checks import assert_variants_are_whole


def test_every_kernel_is_listed_with_all_its_arguments() -> None:
    assert_variants_are_whole(rotary_kernels)


def test_there_is_a_launch_for_every_width_that_is_not_left_to_the_definition() -> None:
    for width, pairs in ((2, 32), (64, 32), (66, 64), (80, 64), (128, 64), (256, 128)):
        ways = rotary_kernels.launches_for(width).on_target("cuda:90")
        assert {launch.tiles["COLS"] for launch in ways} == {pairs}
    assert 2 * max(rotary_kernels.LAUNCHES) == rotary.MAX_WIDTH
