from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from oneflow_dist.containers import Pieces, Sample
from oneflow_dist.flow.noising import draw_times
from oneflow_dist.flow.times import TimeLaw
from tests.noising import noising
from tests.pieces import modality, pieces

ROWS = [1, 2, 4, 9, 16, 64]  # of pieces


def of_rows(*num_rows: int) -> Pieces:
    """Pieces of so many rows."""
    return pieces(range(len(num_rows)), [(1, rows, 1) for rows in num_rows], elements=1)


clocks = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)
shifts = st.integers(1, 4096)  # rows of a shift


@given(clocks, shifts, st.data())
def test_clock_and_time_are_inverse_to_each_other(values: list[float], shift_rows: int, data: st.DataObject) -> None:
    law, clock = TimeLaw(shift_rows=shift_rows), np.array(values)
    some = of_rows(*data.draw(st.lists(st.sampled_from(ROWS), min_size=len(values), max_size=len(values))))
    np.testing.assert_allclose(law.clock(law.at_clock(clock, some), some), clock, atol=1e-12)
    np.testing.assert_allclose(law.at_clock(law.clock(clock, some), some), clock, atol=1e-12)


@pytest.mark.parametrize("shift_rows", [0, 9])
def test_pieces_of_so_many_rows_as_the_shift_has_are_left_alone(shift_rows: int) -> None:
    """All of them, where there is no shift: bitwise."""
    clock, some = np.linspace(0.0, 1.0, 11), of_rows(*[9] * 11)
    law = TimeLaw(shift_rows=shift_rows)
    for of_clock in (law.at_clock, law.clock, law.time):
        np.testing.assert_array_equal(of_clock(clock, some), clock)
    if shift_rows == 0:
        np.testing.assert_array_equal(law.at_clock(clock, of_rows(*range(1, 12))), clock)


@given(st.floats(0.001, 0.999), shifts, st.sampled_from(ROWS))
def test_a_larger_piece_has_more_noise_in_the_form_of_sd3(clock: float, shift_rows: int, num_rows: int) -> None:
    """Of the share of noise sigma = 1 - t: sigma' = s sigma / (1 + (s - 1) sigma), s = sqrt(rows / shift_rows).

    Source: arXiv:2403.03206 Eq. 23, whose n is `shift_rows` and whose m is that of the piece.
    """
    law, s = TimeLaw(shift_rows=shift_rows), (num_rows / shift_rows) ** 0.5
    (time,) = law.at_clock(np.array([clock]), of_rows(num_rows))
    noise = 1.0 - clock
    assert 1.0 - time == pytest.approx(s * noise / (1.0 + (s - 1.0) * noise), rel=1e-9)
    if s != 1.0:
        assert (time < clock) == (s > 1.0)


@given(st.floats(0.05, 0.95), st.sampled_from(ROWS[2:]))
def test_the_mean_of_a_larger_piece_is_as_uncertain_as_that_of_the_usual_one(clock: float, num_rows: int) -> None:
    """What the shift is derived from: noise over signal is (1 - t) / t, and over sqrt(rows) where rows are averaged."""
    usual = 4
    (time,) = TimeLaw(shift_rows=usual).at_clock(np.array([clock]), of_rows(num_rows))
    assert (1.0 - time) / time / num_rows**0.5 == pytest.approx((1.0 - clock) / clock / usual**0.5, rel=1e-9)


@pytest.mark.parametrize("shift_rows", [0, 4])
def test_times_begin_at_noise_end_clean_and_only_grow(shift_rows: int) -> None:
    clock, law = np.linspace(0.0, 1.0, 101), TimeLaw(shift_rows=shift_rows)
    for rows in ROWS:
        time = law.at_clock(clock, of_rows(*[rows] * len(clock)))
        assert (time[0], time[-1]) == (0.0, 1.0)
        assert (np.diff(time) > 0.0).all()


@pytest.mark.parametrize("shift_rows", [0, 1, 4, 64])
@pytest.mark.parametrize("num_steps", [1, 7, 40])
def test_equal_steps_of_the_clock_sum_to_one_exactly(shift_rows: int, num_steps: int) -> None:
    """For pieces of every size together; and no step goes beyond the end, as often as it is taken."""
    law, some = TimeLaw(shift_rows=shift_rows), of_rows(*ROWS)
    time = np.zeros(len(ROWS))
    for number in range(1, num_steps + 3):
        step = law.step(time, 1.0 / num_steps, some)
        assert (step >= 0.0).all()
        time = time + step
        expected = law.at_clock(np.full(len(ROWS), min(1.0, number / num_steps)), some)
        np.testing.assert_allclose(time, expected, atol=1e-9)
        assert (time <= 1.0).all()
    np.testing.assert_allclose(time, 1.0, atol=1e-12)


def test_a_larger_piece_goes_slowly_first_where_noise_hides_more() -> None:
    law, some, time, ways = TimeLaw(shift_rows=4), of_rows(2, 4, 64), np.zeros(3), []
    for _ in range(7):
        ways.append(law.step(time, 1.0 / 7, some))
        time = time + ways[-1]
    of_small, of_usual, of_large = np.diff(ways, axis=0).T
    assert (of_small < 0.0).all()
    np.testing.assert_allclose(of_usual, 0.0, atol=1e-12)
    assert (of_large > 0.0).all()


# The law of training.


def test_uniform_draws_are_times() -> None:
    draws = np.random.default_rng(0).random(5)
    np.testing.assert_array_equal(TimeLaw().time(draws, of_rows(*[4] * 5)), draws)


def test_logit_normal_times_have_the_quartiles_of_a_normal_logit() -> None:
    """The median is 1/2; quartiles are sigmoid(-+ 0.6745)."""
    draws = np.array([0.25, 0.5, 0.75])
    found = TimeLaw(kind="logit_normal").time(draws, of_rows(4, 4, 4))
    np.testing.assert_allclose(found, 1.0 / (1.0 + np.exp([0.6744897501960817, 0.0, -0.6744897501960817])), atol=1e-12)
    many = TimeLaw(kind="logit_normal").time(np.random.default_rng(0).random(4_000), of_rows(*[4] * 4_000))
    assert stats.kstest(np.log(many / (1.0 - many)), "norm").pvalue > 0.01


def test_logit_normal_times_of_the_outermost_draws_are_inside() -> None:
    found = TimeLaw(kind="logit_normal").time(np.array([0.0, 1.0 - 2.0**-53, 1.0]), of_rows(4, 4, 4))
    assert ((found > 0.0) & (found < 1.0)).all()
    assert TimeLaw(kind="logit_normal").time(np.zeros(0), of_rows()).shape == (0,)


def test_a_shift_follows_the_law() -> None:
    law, some = TimeLaw(kind="logit_normal", shift_rows=4), of_rows(16, 16, 16)
    draws = np.array([0.2, 0.5, 0.9])
    plain = TimeLaw(kind="logit_normal").time(draws, some)
    np.testing.assert_array_equal(law.time(draws, some), law.at_clock(plain, some))


def test_a_modality_says_its_law() -> None:
    assert TimeLaw.of(modality()) == TimeLaw()
    assert TimeLaw.of(modality(times="logit_normal", shift_rows=9)) == TimeLaw(kind="logit_normal", shift_rows=9)


def test_inserted_pieces_follow_the_schedule_whatever_their_law(make_sample: Callable[..., Sample]) -> None:
    """Its mathematics need it: only pieces with times of their own have the law of their modality."""
    law = TimeLaw(kind="logit_normal", shift_rows=1)
    ages = {}
    for is_interleaved in (True, False):
        sample = make_sample([256, 1, None, None], is_interleaved=is_interleaved)
        for name, of in (("uniform", TimeLaw()), ("law", law)):
            _, (age,) = draw_times(sample, noising(laws=[of]), np.random.default_rng(1))
            ages[is_interleaved, name] = age
    np.testing.assert_array_equal(ages[True, "uniform"], ages[True, "law"])
    assert not np.array_equal(ages[False, "uniform"], ages[False, "law"])
