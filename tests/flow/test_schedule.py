from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.flow.schedule import KeepSchedule

SCHEDULES = {
    "linear": KeepSchedule(kind="linear"),
    "cosine": KeepSchedule(kind="cosine"),
    "square": KeepSchedule(kind="power", exponent=2.0),
    "cube": KeepSchedule(kind="power", exponent=3.0),
    "root": KeepSchedule(kind="power", exponent=0.5),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
some_schedule = st.sampled_from(list(SCHEDULES.values()))
inside = st.floats(0.001, 0.999)


@every_schedule
def test_nothing_is_kept_at_the_start_and_everything_at_the_end(schedule: KeepSchedule) -> None:
    assert schedule.keep_prob(0.0) == 0.0
    assert schedule.keep_prob(1.0) == pytest.approx(1.0, abs=1e-15)


@every_schedule
def test_keep_probability_increases(schedule: KeepSchedule) -> None:
    values = [schedule.keep_prob(t) for t in np.linspace(0.0, 1.0, 101)]
    assert all(a < b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("kind", "exponent", "expected"),
    [("linear", 1.0, 0.25), ("cosine", 1.0, 1 - math.cos(math.pi / 8)), ("power", 3.0, 1 / 64)],
)
def test_keep_probability_at_a_quarter(kind: str, exponent: float, expected: float) -> None:
    assert KeepSchedule(kind=kind, exponent=exponent).keep_prob(0.25) == pytest.approx(expected)  # type: ignore[arg-type]


@given(some_schedule, st.lists(inside, min_size=1, max_size=20))
def test_insertion_time_inverts_keep_probability(schedule: KeepSchedule, probs: list[float]) -> None:
    times = schedule.insertion_time(np.array(probs))
    np.testing.assert_allclose([schedule.keep_prob(float(t)) for t in times], probs, rtol=1e-9)


@given(some_schedule, inside)
def test_hazard_is_the_slope_of_the_log_of_what_is_missing(schedule: KeepSchedule, time: float) -> None:
    step = 1e-6 * min(time, 1.0 - time)
    before, after = (math.log(1.0 - schedule.keep_prob(time + side)) for side in (-step, step))
    assert schedule.hazard(time) == pytest.approx((before - after) / (2.0 * step), rel=1e-3)


@every_schedule
def test_hazard_at_the_ends(schedule: KeepSchedule) -> None:
    """Infinite at 1; at 0 it is the slope of kappa there, which for a root is infinite too."""
    assert schedule.hazard(1.0) == math.inf
    start = schedule.hazard(0.0)
    expected = {"linear": 1.0, "cosine": 0.0, "power": math.inf if schedule.exponent < 1.0 else 0.0}
    assert start == expected[schedule.kind]


@given(some_schedule, st.floats(0.0, 0.99), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_two_steps_insert_as_much_as_one_of_their_length(
    schedule: KeepSchedule, time: float, first: float, second: float
) -> None:
    missing_after_two = (1.0 - schedule.insertion_prob(time, first)) * (
        1.0 - schedule.insertion_prob(min(1.0, time + first), second)
    )
    assert 1.0 - missing_after_two == pytest.approx(schedule.insertion_prob(time, first + second), abs=1e-9)


@given(st.floats(0.0, 0.99), st.floats(0.001, 1.0))
def test_insertion_probability_of_the_linear_schedule_is_eulers_step(time: float, step_size: float) -> None:
    schedule = SCHEDULES["linear"]
    assert schedule.insertion_prob(time, step_size) == pytest.approx(
        min(1.0, step_size * schedule.hazard(time)), abs=1e-12
    )


@every_schedule
@pytest.mark.parametrize("num_steps", [1, 3, 10, 49, 128])
def test_steps_from_start_to_end_insert_everything(schedule: KeepSchedule, num_steps: int) -> None:
    """Also where a clock that sums 1/N misses 1 by a rounding error."""
    time, missing = 0.0, 1.0
    for _ in range(num_steps):
        missing *= 1.0 - schedule.insertion_prob(time, 1.0 / num_steps)
        time += 1.0 / num_steps
    assert missing == pytest.approx(0.0, abs=1e-6)


@every_schedule
def test_insertion_probability_at_the_end_is_one(schedule: KeepSchedule) -> None:
    assert schedule.insertion_prob(1.0, 0.1) == 1.0
    assert schedule.insertion_prob(0.9, 0.5) == 1.0


def test_eulers_first_step_of_a_cubic_schedule_inserts_nothing_but_the_exact_one_does() -> None:
    schedule = SCHEDULES["cube"]
    assert 0.25 * schedule.hazard(0.0) == 0.0
    assert schedule.insertion_prob(0.0, 0.25) == pytest.approx(1 / 64)
