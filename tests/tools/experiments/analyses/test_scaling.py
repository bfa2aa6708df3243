from __future__ import annotations

import numpy as np
import pytest

from tests.tools.experiments.making import measured
from tools.experiments.analyses.scaling import (
    FIGURES,
    SIZES,
    all_runs,
    best_runs,
    budgets_of,
    draw,
    objectives_of,
    ratio,
    say_fit,
    write_section,
)
from tools.experiments.reading import load_experiment
from tools.experiments.results import Results

STEPS = {"small": 400, "middle": 200, "large": 100}  # of the smallest budget
WORTH = {"insertion": 2.0, "next tokens": 1.0, "masked": 0.5}  # how many FLOPs one is worth
BEST = {"80": "small", "160": "middle", "320": "large"}


@pytest.fixture
def results() -> Results:
    """Losses fall by the square root of FLOPs, shares get right by as much; the best size grows with the budget."""
    experiment = load_experiment("scaling")
    found = []
    for arm in experiment.arm:
        if ", " not in arm:
            continue
        objective, size, budget = arm.split(", ")
        tflops = float(budget) / 1000.0
        left = 0.1 * (tflops * WORTH[objective]) ** -0.5 * (1.0 if size == BEST[budget] else 1.2)
        for seed in range(3):
            value = left * (1.0 + 0.001 * seed)
            rows = [
                (own.probe, None, own.of or name, 1.0 - value if own.is_share else value)
                for name, own in experiment.figure.items()
                if own.probe != "pace"
            ]
            result = measured(arm, seed, rows)
            steps = STEPS[size] * int(budget) // 80
            found.append(result | {"training": {"steps": steps, "seconds": 1.0, "tflops": tflops, "folder": "x"}})
    paces = [
        ("pace", (arm, None, "step_seconds", {"small": 0.1, "middle": 0.2, "large": 0.4}[arm.split(", ")[1]]))
        for arm in experiment.probe["pace"].kinds
    ]
    found.append(measured("pace", 0, []) | {"rows": paces, "training": {}})
    return Results(experiment, tuple(found))


def test_objectives_and_budgets_are_those_of_the_file(results: Results) -> None:
    assert objectives_of(results) == list(WORTH)
    assert budgets_of(results, "masked") == ["80", "160", "320"]


def test_the_best_size_is_chosen_for_each_budget(results: Results) -> None:
    curve = best_runs(results, "velocity", "insertion", "tflops")
    np.testing.assert_allclose(curve.budgets, [0.08, 0.16, 0.32])
    np.testing.assert_allclose(curve.values[0], 0.1 * (2.0 * curve.budgets) ** -0.5)
    np.testing.assert_allclose(best_runs(results, "velocity", "insertion", "seconds").budgets, [40.0, 80.0, 160.0])


def test_all_runs_come_from_the_cheapest_on(results: Results) -> None:
    for what in ("tflops", "seconds"):
        budgets = all_runs(results, "velocity", "masked", what).budgets
        assert len(budgets) == 9
        assert (np.diff(budgets) >= 0.0).all()


@pytest.mark.parametrize("figure", FIGURES)
def test_who_makes_twice_as_much_of_a_flop_needs_half_of_them(figure: str, results: Results) -> None:
    """Between budgets the curve is taken as linear in their logarithm, and half is a budget that was measured."""
    assert ratio(results, figure, "insertion", "next tokens", "tflops").value == pytest.approx(0.5, rel=0.02)
    assert ratio(results, figure, "insertion", "next tokens", "seconds").value == pytest.approx(0.5, rel=0.02)
    assert np.isinf(ratio(results, figure, "masked", "next tokens", "tflops").value)


def test_the_fit_is_the_power_that_the_losses_follow(results: Results) -> None:
    assert say_fit(results, "velocity", "insertion") == "-0.50 ± 0.00"


def test_the_section_tells_every_figure_and_the_picture_draws_it_twice(results: Results) -> None:
    section = write_section(results)
    for figure in FIGURES:
        assert section.count(results.experiment.figure[figure].title) == 2
    page = draw(results)
    assert len(page.axes) == 2 * len(FIGURES)
    assert len(SIZES) == 3
