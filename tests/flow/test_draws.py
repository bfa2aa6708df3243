from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.flow.draws import draw_systematically

Chances = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


@given(Chances, st.integers(0, 99))
def test_as_many_events_happen_as_are_expected_up_to_rounding(chances: list[float], seed: int) -> None:
    is_drawn = draw_systematically(np.array(chances), np.random.default_rng(seed))
    assert abs(is_drawn.sum() - sum(chances)) < 1.0 + 1e-9
    assert not is_drawn[np.array(chances) == 0.0].any()


class Chosen(np.random.Generator):
    """A generator whose next number is known."""

    number = 0.0

    def random(self) -> float:  # type: ignore[override]
        return self.number


@given(Chances)
def test_each_event_has_its_own_chance(chances: list[float]) -> None:
    """Over evenly spaced draws."""
    prob, num, rng = np.array(chances), 100, Chosen(np.random.PCG64(0))
    fires = np.zeros(len(prob))
    for n in range(num):
        rng.number = (n + 0.5) / num
        fires += draw_systematically(prob, rng)
    np.testing.assert_allclose(fires / num, prob, atol=1.0 / num + 1e-9)


@given(st.lists(st.floats(0.0, 0.5), min_size=2, max_size=12), st.integers(0, 99))
def test_neighbours_with_small_chances_exclude_each_other(chances: list[float], seed: int) -> None:
    is_drawn = draw_systematically(np.array(chances), np.random.default_rng(seed))
    assert not (is_drawn[:-1] & is_drawn[1:])[np.add(chances[:-1], chances[1:]) < 1.0].any()
