from __future__ import annotations

import pytest

from oneflow_dist.guard.pace import COST_SECONDS, IN_A_ROW, OTHERWISE, WARMUP_STEPS, Pace
from tests.messages import names


def run(pace: Pace, *seconds: float, phase: str = "forward and backward", first: int = 1) -> None:
    for step, of_step in enumerate(seconds, first):
        pace.spend("optimizer step", 0.1 * of_step)
        pace.spend(phase, 0.9 * of_step)
        pace.note(step, of_step)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_steps_that_become_slow_are_told_once_and_so_is_their_end(capsys: pytest.CaptureFixture[str]) -> None:
    run(Pace(), *[0.2] * 20, *[2.0] * 4, 0.2, 0.2)
    slow, over = said(capsys)
    assert names(slow, "step 23", IN_A_ROW, 10, 0.2, '"forward and backward"', OTHERWISE)
    assert names(over, "step 25", 4)


def test_one_step_that_costs_much_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    run(Pace(), *[0.2] * 20, COST_SECONDS + 1.0)
    (line,) = said(capsys)
    assert names(line, "step 21", "this step", 55)


@pytest.mark.parametrize(
    ("phase", "advice"), [("waiting for data", "data"), ("waiting for the other ranks", "guard.slow_ranks_every_steps")]
)
def test_the_phase_that_takes_longest_says_what_to_look_at(
    phase: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Pace(), *[0.2] * 20, *[2.0] * IN_A_ROW, phase=phase)
    (line,) = said(capsys)
    assert names(line, phase, advice)
    assert OTHERWISE not in line


@pytest.mark.parametrize(
    "seconds",
    [
        [0.2] * (WARMUP_STEPS - 1) + [2.0] * IN_A_ROW,  # too few to know what is usual
        [60.0] + [0.2] * 20,  # the first compiles
        [0.2] * 20 + [2.0, 2.0, 0.2] * 5,  # now and then
        [0.01] * 20 + [0.2] * IN_A_ROW,  # twenty times as long, and hardly anything
        [1.0] * 20 + [2.5] * 60,  # not so slow
    ],
    ids=["a young run", "compilation", "now and then", "short steps", "a little"],
)
def test_nothing_is_said_of(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run(Pace(), *seconds)
    assert said(capsys) == []


def test_slow_steps_do_not_become_usual(capsys: pytest.CaptureFixture[str]) -> None:
    pace = Pace()
    run(pace, *[0.2] * 20, *[2.0] * 200)
    assert len(said(capsys)) == 1
    run(pace, 0.2, *[2.0] * IN_A_ROW, first=221)
    assert len(said(capsys)) == 2
