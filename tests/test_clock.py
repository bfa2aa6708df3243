from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest

from oneflow_dist.clock import at_time
from tools.experiments.toys import FIX, LINEAR, VAR, at_any_time, distance, law_after, settings_of


@pytest.fixture
def _unchecked(unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with unchecked():
        yield


FILLED, RATE = np.array([0.9, 0.5, 0.02]), np.array([3.0, 1.2, 1.0])


def test_a_share_of_0_changes_nothing_but_the_floor_of_rates() -> None:
    filled, rate = at_time(FILLED, np.array([3.0, 1.2, 0.4]), 5, 0.3, 0.0)
    np.testing.assert_allclose(filled, FILLED, atol=1e-5)
    np.testing.assert_allclose(rate, RATE, rtol=2e-3)  # the geometric law is cut off at eight times its mean


@pytest.mark.parametrize("num_written", [0, 3, 100])
def test_the_later_it_is_the_less_is_missing(num_written: int) -> None:
    found = [at_time(FILLED, RATE, num_written, keep_prob, 1.0) for keep_prob in (0.05, 0.3, 0.6, 0.9, 0.999)]
    for before, after in itertools.pairwise(found):
        assert (after[0] < before[0]).all()
        assert (after[1] <= before[1] + 1e-9).all()
    assert found[-1][0].max() < 0.5


def test_the_more_is_there_at_a_time_the_more_is_missing() -> None:
    few, many = (at_time(FILLED, RATE, number, 0.5, 1.0) for number in (2, 40))
    assert (many[0] > few[0]).all()


def test_one_slot_that_misses_hundreds_of_tokens_and_no_slot_at_all() -> None:
    filled, rate = at_time(np.array([0.999]), np.array([400.0]), 0, 0.0, 0.9)
    assert np.isfinite([filled[0], rate[0]]).all()
    assert filled[0] > 0.99
    filled, rate = at_time(np.zeros(0), np.zeros(0), 0, 0.5, 0.9)
    assert len(filled) == len(rate) == 0


@pytest.mark.usefixtures("_unchecked")
def test_texts_no_longer_grow_with_the_number_of_steps_and_come_near_the_data() -> None:
    """Exact heads that know no time: mean length 2.20 in the data, and total variation, for N = 4, 8, 16, 32."""
    ways = [settings_of(num_steps, clock_share=0.92) for num_steps in (4, 8, 16, 32)]
    laws = [law_after(VAR, LINEAR, at_any_time, own) for own in ways]
    lengths = [sum(len(text) * prob for text, prob in law.items()) for law in laws]
    assert lengths == pytest.approx([2.24, 2.21, 2.19, 2.19], abs=0.01)
    assert [distance(law, VAR) for law in laws] == pytest.approx([0.191, 0.085, 0.057, 0.048], abs=0.002)
    grown = law_after(VAR, LINEAR, at_any_time, settings_of(32))
    assert distance(grown, VAR) > 0.4


@pytest.mark.usefixtures("_unchecked")
def test_where_the_length_is_fixed_the_clock_must_not_correct() -> None:
    exact, spoilt = (law_after(FIX, LINEAR, at_any_time, settings_of(8, clock_share=share)) for share in (0.0, 1.0))
    assert distance(exact, FIX) < 0.002
    assert distance(spoilt, FIX) > 0.15
