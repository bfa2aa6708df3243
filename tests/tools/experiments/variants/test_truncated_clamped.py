from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.tools.experiments.variants.heads import HEADS, chances
from tools.experiments.toys import canvas_of, predict


def test_chances_to_fire_in_a_quarter_of_the_time(replaced: Callable[[str], None]) -> None:
    """Of gates .5, .2, .8, 0 and rates .2, 2, 5, 1, with q = 1/4."""
    replaced("truncated_clamped")
    assert chances(canvas_of("abb", 0.0), predict(HEADS), 4) == pytest.approx(
        [0.5 * 0.25, 0.2 * 0.5, 0.8, 0.0], abs=1e-6
    )
