from __future__ import annotations

import math

import pytest

from oneflow_dist.toml import check_range
from tests.messages import naming


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[1, inf)", [1, 2, 10**30], [0, -1, math.inf]),
        ("(0, inf)", [1e-300, 5], [0, -0.0, -1, math.inf]),
        ("(0, inf]", [1e-300, math.inf], [0, -math.inf]),
        ("(-inf, inf)", [-1e300, 0, 1e300], [math.inf, -math.inf]),
        ("[0, 1]", [0, 0.5, 1], [-1e-300, 1.0000001]),
        ("[0, 1)", [0, 0.9999999], [1, -1]),
        ("[0, 2^63)", [0, 2**63 - 1], [2**63, -1]),
        ("[-1, -1] or [1, inf)", [-1, 1, 64], [0, -2, math.inf]),
    ],
)
def test_an_interval_has_the_ends_that_its_brackets_say(
    interval: str, inside: list[float], outside: list[float]
) -> None:
    for value in inside:
        check_range("x", value, interval)
    for value in [*outside, math.nan]:
        with pytest.raises(ValueError, match=naming("a.b", value, interval)):
            check_range("a.b", value, interval)
