"""Whether results differ: of made-up runs, of which it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.launching import Launcher
from tests.tools.benchmark.made_up import MACHINE
from tools.benchmark.compare import FEWEST, HIGH, LOW, RATIO, SAME, bounds_of, compare_results, ratio_of_means
from tools.benchmark.result import Measured, Result

TRIALS = 100


def result(values: list[float], machine: dict[str, Any] | None = None, **fields: Any) -> Result:
    content: dict[str, Any] = {
        "command": ["python", "-m", "tools.benchmark", "train", "a.toml"],
        "options": {"synthetic": False, "steps": 20},
        "config": {"run": {"folder": "runs/a"}, "model": {"width": 8}},
        "machine": {**MACHINE, "cores": 4, "ranks": 1, **(machine or {})},
        "measured": Measured(series={"milliseconds of a step": {"whole": values}}),
    }
    return Result(**content | fields)


def steps(rng: np.random.Generator, count: int, mean: float = 100.0) -> list[float]:
    """Milliseconds that drift: each is nearer to the one before than to the mean."""
    noise, last = [], 0.0
    for step in rng.standard_normal(count):
        last = 0.7 * last + 0.7 * step
        noise.append(mean * np.exp(0.1 * last))
    return noise


def share_within(of_trial: list[tuple[list[list[float]], list[list[float]]]], ratio: float) -> float:
    bounds = [ratio_of_means(*sides).bound for sides in of_trial]
    return float(np.mean([bound is not None and bound[0] <= ratio <= bound[1] for bound in bounds]))


@pytest.mark.parametrize("count", [20, 200])
def test_bounds_hold_the_ratio_of_what_drifts_as_often_as_they_should(count: int) -> None:
    """Nineteen of twenty times is the aim; bounds that took neighbours for independent would do so in two of three."""
    rng = np.random.default_rng(0)
    trials = [([steps(rng, count)], [steps(rng, count, 120.0)]) for _ in range(TRIALS)]
    assert share_within(trials, 1.2) >= 0.85


def test_several_runs_know_how_much_runs_differ_and_one_does_not() -> None:
    """The same program on a machine that is up to twice as slow in some runs."""
    rng = np.random.default_rng(1)

    def runs(count: int) -> list[list[float]]:
        return [steps(rng, 50, 100.0 * float(np.exp(0.3 * rng.standard_normal()))) for _ in range(count)]

    assert share_within([(runs(1), runs(1)) for _ in range(TRIALS)], 1.0) < 0.5
    for count in (2, 4):
        assert share_within([(runs(count), runs(count)) for _ in range(TRIALS)], 1.0) >= 0.9, count


def test_what_is_the_same_has_no_difference_and_what_is_slower_has_one() -> None:
    rng = np.random.default_rng(2)
    a, same, slower = (result(steps(rng, 60, mean)) for mean in (100.0, 100.0, 130.0))
    name = "milliseconds of a step: whole"
    assert compare_results([a], [same]).numbers[name] == SAME
    measured = compare_results([a], [slower])
    assert name not in measured.numbers
    low, ratio, high = bounds_of(measured)[name]
    assert 1.0 < low < ratio < high
    assert ratio == pytest.approx(1.3, rel=0.15)
    assert [measured.series[column][name] for column in (LOW, RATIO, HIGH)] == [[low], [ratio], [high]]


def test_few_values_have_a_ratio_without_a_bound() -> None:
    measured = compare_results([result([2.0] * (FEWEST - 1))], [result([3.0] * 50)])
    ((_, verdict),) = measured.numbers.items()
    assert "no bound" in str(verdict)
    assert list(bounds_of(measured).values()) == [(1.5, 1.5, 1.5)]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"machine": {"device": "NVIDIA H200"}}, "device"),
        ({"machine": {"ranks": 2}}, "ranks"),
        ({"options": {"synthetic": True, "steps": 20}}, "--synthetic"),
        ({"config": {"run": {"folder": "runs/a"}, "model": {"width": 16}}}, r"model\.width.*8.*16"),
        ({"command": ["python", "-m", "tools.benchmark", "sample"]}, "command"),
    ],
)
def test_what_is_not_alike_is_refused_unless_asked_for(other: dict[str, Any], named: str) -> None:
    sides = [result([1.0] * 9)], [result([2.0] * 9, **other)]
    with pytest.raises(ValueError, match=rf"{named}.*--unlike"):
        compare_results(*sides)
    assert list(bounds_of(compare_results(*sides, is_unlike=True)).values()) == [pytest.approx((2.0, 2.0, 2.0))]


def test_runs_of_one_side_have_to_be_alike_too() -> None:
    with pytest.raises(ValueError, match=r"model\.width"):
        compare_results([result([1.0]), result([1.0], config={"model": {"width": 9}})], [result([1.0])])


def test_folders_commits_and_how_often_may_differ() -> None:
    other = {
        "config": {"run": {"folder": "runs/b"}, "model": {"width": 8}},
        "options": {"synthetic": False, "steps": 7},
    }
    assert compare_results([result([1.0])], [result([1.0], {"commit": "4567def", "torch": "2.14.0"}, **other)]).series


def test_results_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing was measured in all"):
        compare_results([result([1.0])], [result([1.0], measured=Measured(series={"GFLOP": {"mlp": [1.0]}}))])


def test_the_program_writes_ratios_and_draws_them(launcher: Launcher, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    rng = np.random.default_rng(3)
    for name, mean in (("a/1", 100.0), ("a/2", 100.0), ("b", 200.0)):
        result(steps(rng, 30, mean)).write(tmp_path / name, Figure())
    command = "-m", "tools.benchmark", "compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "out"
    end = launcher.run(*command)
    assert end.code == 0, end.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "report.md", "plot.png"}
    assert "2 x python -m tools.benchmark train" in end.stdout
