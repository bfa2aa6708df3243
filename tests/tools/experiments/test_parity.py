from __future__ import annotations

import numpy as np
import pytest

from tools.experiments.parity import Ratio, Scores, compare_flops, make_monotone

FLOPS = np.array([1e9, 2e9, 4e9])


def scores(efficiency: float, shift: float = 0.0, seeds: int = 3, spread: float = 0.0) -> Scores:
    """a + b log FLOPs, of whom every FLOP does as much as `efficiency` of them."""
    means = 0.3 + shift + 0.1 * np.log(efficiency * FLOPS / FLOPS[0])
    return Scores(flops=FLOPS, values=means + spread * (np.arange(seeds) - (seeds - 1) / 2)[:, None])


@pytest.mark.parametrize("efficiency", [1.0, 0.5, 0.4, 0.26])
def test_who_does_as_much_with_half_of_the_flops_has_a_ratio_of_a_half(efficiency: float) -> None:
    assert compare_flops(scores(1.0), scores(efficiency)).value == pytest.approx(efficiency, rel=1e-6)


def test_between_budgets_the_score_is_linear_in_the_logarithm() -> None:
    ours = Scores(flops=np.array([1.0, 4.0]), values=np.array([[0.0, 1.0]]))
    theirs = Scores(flops=np.array([2.0, 8.0]), values=np.array([[0.0, 0.5]]))
    assert compare_flops(ours, theirs).value == pytest.approx(2.0 / 8.0)


def test_beyond_what_was_measured_the_end_is_told() -> None:
    less, more = compare_flops(scores(1.0), scores(0.1)), compare_flops(scores(1.0), scores(1.1))
    assert (less.value, more.value) == (0.0, np.inf)
    assert str(less) == "≤ 0.25 [≤ 0.25, ≤ 0.25]"
    assert str(more) == "> 1.00 [> 1.00, > 1.00]"


def test_one_seed_has_no_interval() -> None:
    ratio = compare_flops(scores(1.0, seeds=1), scores(0.5, seeds=1), samples=256)
    assert (ratio.low, ratio.high) == (None, None)
    assert str(ratio) == "0.50"


def test_equal_scores_take_the_least_budget_that_was_measured() -> None:
    perfect = Scores(flops=FLOPS, values=np.full((3, 3), 1.0))
    assert str(compare_flops(perfect, perfect, samples=256)) == "≤ 0.25 [≤ 0.25, ≤ 0.25]"


@pytest.mark.parametrize("samples", [0, 256])
def test_the_interval_holds_the_ratio_and_comes_out_the_same_again(samples: int) -> None:
    first, again = (compare_flops(scores(1.0, spread=0.01), scores(0.5, spread=0.01), samples) for _ in range(2))
    assert first == again
    assert first.low is not None
    assert first.high is not None
    assert first.low < 0.5 < first.high


def test_few_documents_and_seeds_that_differ_widen_the_interval() -> None:
    def width(samples: int, spread: float) -> float:
        ratio = compare_flops(scores(1.0, spread=spread), scores(0.5, spread=spread), samples)
        assert ratio.low is not None
        assert ratio.high is not None
        return ratio.high - ratio.low

    assert width(0, 0.0) == pytest.approx(0.0, abs=1e-9)
    assert 0.0 < width(0, 0.005) < width(0, 0.02)
    assert 0.0 < width(4096, 0.0) < width(256, 0.0)


def test_nine_of_ten_intervals_hold_the_truth() -> None:
    rng, seeds, noise, trials = np.random.default_rng(0), 8, 0.02, 100
    held = 0
    for _ in range(trials):
        ours, theirs = (
            Scores(flops=FLOPS, values=curve.values + noise * rng.normal(size=(seeds, len(FLOPS))))
            for curve in (scores(1.0, seeds=seeds), scores(0.5, seeds=seeds))
        )
        ratio = compare_flops(ours, theirs)
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 0.5 <= ratio.high
    assert 0.8 * trials <= held <= 0.98 * trials  # seeds drawn with replacement differ a little too little


def test_the_nearest_growing_curve_is_that_of_pooled_neighbours() -> None:
    curves = np.array([[1.0, 3.0, 2.0, 4.0], [4.0, 3.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0]])
    expected = [[1.0, 2.5, 2.5, 4.0], [2.5] * 4, [0.0, 1.0, 2.0, 3.0]]
    assert np.allclose(make_monotone(curves), expected)


def test_an_interval_may_end_beyond_what_was_measured() -> None:
    assert str(Ratio(value=0.5, low=0.0, high=np.inf, least=0.25, most=1.0)) == "0.50 [≤ 0.25, > 1.00]"
