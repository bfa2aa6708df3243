from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.metrics.distances import (
    frechet_bias_note,
    measure_frechet,
    measure_frechet_unbiased,
    measure_kernel,
)
from tests.messages import names, naming

CASES = json.loads((Path(__file__).parent / "distances_reference.json").read_text())["cases"]
WHOLE = [case for case in CASES if "kernel_whole_clean_fid" in case]
PACKAGES = ("clean_fid", "torch_fidelity")
Distance = Callable[[np.ndarray, np.ndarray], Measure]


def features(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(case["seed"])
    made = np.maximum(rng.standard_normal((case["n"], case["d"])), 0.0) * case["scale"] + case["shift"]
    return made, np.maximum(rng.standard_normal((case["m"], case["d"])), 0.0)


def normal(seed: int, number: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, width))


def kernel(made: np.ndarray, real: np.ndarray) -> Measure:
    return measure_kernel(made, real, subsets=5).measure


DISTANCES = [measure_frechet, measure_frechet_unbiased, kernel]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_frechet_is_that_of_other_packages_also_where_covariances_are_singular(
    case: dict[str, Any], package: str
) -> None:
    tolerance = 1e-6 if min(case["n"], case["m"]) <= case["d"] else 1e-10  # of their roots, not of ours
    assert measure_frechet(*features(case)).value == pytest.approx(case[f"frechet_{package}"], rel=tolerance)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_kernel_distance_is_of_the_subsets_that_other_packages_draw(case: dict[str, Any], package: str) -> None:
    found = measure_kernel(*features(case), case["kernel_subsets"], case["kernel_subset_size"])
    assert found.measure.value == pytest.approx(case[f"kernel_{package}"], rel=1e-10)
    assert found.std == pytest.approx(case["kernel_std_torch_fidelity"], rel=1e-10)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["name"])
def test_the_kernel_distance_of_whole_sets_is_one_subset(case: dict[str, Any], package: str) -> None:
    found = measure_kernel(*features(case))
    assert found.measure.value == pytest.approx(case[f"kernel_whole_{package}"], rel=1e-10)
    assert found.std == 0.0


@pytest.mark.parametrize("number", [50, 5])
def test_identical_sets_have_no_frechet_distance(number: int) -> None:
    rows = normal(0, number)
    assert measure_frechet(rows, rows[::-1]).value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("distance", [measure_frechet, measure_frechet_unbiased])
def test_a_shift_is_as_far_as_its_square(distance: Distance) -> None:
    rows, shift = normal(0, 4000, 3), np.array([3.0, 0.0, 4.0])
    assert distance(rows + shift, rows).value == pytest.approx(25.0, rel=1e-9 if distance is measure_frechet else 0.01)


def test_a_scale_is_as_far_as_the_difference_of_deviations() -> None:
    rows = normal(0, 200)
    rows -= rows.mean(0)
    assert measure_frechet(3.0 * rows, rows).value == pytest.approx(4.0 * rows.var(0, ddof=1).sum(), rel=1e-9)


def test_frechet_may_be_turned_around_and_does_not_depend_on_axes() -> None:
    made, real = normal(0, 40) * 1.5, normal(1, 30) + 0.5
    turn = np.linalg.qr(normal(2, 8))[0]
    expected = measure_frechet(made, real).value
    assert measure_frechet(real, made).value == pytest.approx(expected)
    assert measure_frechet(made @ turn, real @ turn).value == pytest.approx(expected)


def test_the_kernel_distance_of_pairs_is_what_the_formula_says() -> None:
    made, real = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [3.0, 0.0]])
    among = 1.0**3 + (3.0 / 2.0 + 1.0) ** 3  # x.x' = 0, y.y' = 3
    across = (1.5**3 + 2.5**3 + 2.0**3 + 1.0**3) / 4.0  # 1, 3, 2, 0
    assert kernel(made, real).value == pytest.approx(among - 2.0 * across)


@pytest.mark.parametrize("number", [300, 900])
def test_without_its_bias_the_distance_of_one_law_from_itself_is_none(number: int) -> None:
    raw, corrected, by_kernel = [], [], []
    for seed in range(10):
        made, real = normal(seed, number, 16), normal(100 + seed, number, 16)
        raw.append(measure_frechet(made, real).value)
        corrected.append(measure_frechet_unbiased(made, real).value)
        by_kernel.append(kernel(made, real).value)
    assert min(raw) > 0.0
    assert abs(np.mean(corrected)) < 0.1 * np.mean(raw)
    assert abs(np.mean(by_kernel)) < 2.0 * np.std(by_kernel) / np.sqrt(len(by_kernel)) + 1e-3


def test_without_its_bias_the_distance_does_not_depend_on_how_many_pictures_there_are() -> None:
    truth = 16 * (0.3**2 + 0.2**2)  # of mean and deviation
    few, many = (
        np.mean(
            [measure_frechet_unbiased(1.2 * normal(s, n, 16) + 0.3, normal(50 + s, n, 16)).value for s in range(10)]
        )
        for n in (250, 1000)
    )
    assert few == pytest.approx(truth, rel=0.15)
    assert many == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("distance", [measure_frechet, kernel])
def test_an_interval_is_as_wide_as_fresh_sets_differ(distance: Distance) -> None:
    real = normal(1000, 400)
    measures = [distance(1.2 * normal(seed, 200) + 0.2, real) for seed in range(60)]
    low, high = measures[0].interval()
    assert low < measures[0].value < high
    told = np.mean([measure.rows.std() / np.sqrt(200) for measure in measures])
    assert told == pytest.approx(np.std([measure.value for measure in measures]), rel=0.3)
    assert (high - low) / 4.0 == pytest.approx(told, rel=0.25)


@pytest.mark.parametrize("rank", [8, 3])
def test_the_rows_of_frechet_are_its_derivative_in_the_weight_of_a_picture(rank: int) -> None:
    """One picture more moves the figure of many copies of all as its row says, also where covariances are singular."""
    made, real, number, copies = 1.3 * normal(0, 40), normal(1, 30), 40, 400
    made[:, rank:] = 0.0
    rows = measure_frechet(made, real).rows[:, 0]
    many = np.repeat(made, copies, axis=0)
    plain = measure_frechet(many, real).value
    moved = [measure_frechet(np.concatenate([many, made[[at]]]), real).value - plain for at in range(5)]
    expected = (rows[:5] - rows.mean()) / (number * copies)
    assert moved == pytest.approx(expected, rel=0.05, abs=0.05 * np.abs(expected).max())


def test_subsets_and_intervals_come_out_the_same_again_and_another_seed_draws_others() -> None:
    made, real = normal(0, 60) + 0.5, normal(1, 80)
    first, again = (measure_kernel(made, real, 5, 20) for _ in range(2))
    assert (first.measure.value, first.std) == (again.measure.value, again.std)
    assert first.measure.interval() == again.measure.interval()
    assert measure_kernel(made, real, 5, 20, seed=1).measure.value != first.measure.value


def test_a_subset_is_no_larger_than_the_smaller_set() -> None:
    made, real = normal(0, 30), normal(1, 50)
    expected = measure_kernel(made, real, 4, 30)
    found = measure_kernel(made, real, 4)
    assert (found.measure.value, found.std) == (expected.measure.value, expected.std)
    assert found.std > 0.0  # the larger set's differ


def test_features_of_half_precision_are_summed_in_whole() -> None:
    made, real = normal(0, 64).astype(np.float16), normal(1, 64).astype(np.float16)
    for distance in DISTANCES:
        assert distance(made, real).value == distance(made.astype(np.float64), real.astype(np.float64)).value


@pytest.mark.parametrize(("distance", "least"), [(measure_frechet, 2), (kernel, 2), (measure_frechet_unbiased, 8)])
def test_too_few_pictures_are_refused(distance: Distance, least: int) -> None:
    few, enough = normal(0, least - 1), normal(1, least)
    assert np.isfinite(distance(enough, enough).value)
    with pytest.raises(ValueError, match=naming("made", least - 1, least)):
        distance(few, enough)
    with pytest.raises(ValueError, match=naming("real", least - 1, least)):
        distance(enough, few)


def test_a_report_says_of_how_many_pictures_the_figure_is_and_when_covariances_are_singular() -> None:
    enough, few = frechet_bias_note(5000, 4000, 2048), frechet_bias_note(5000, 2048, 2048)
    assert names(enough, 5000, 4000, 2048)
    assert names(few, 5000, 2048, 2048)
    assert "singular" in few
    assert "singular" not in enough
