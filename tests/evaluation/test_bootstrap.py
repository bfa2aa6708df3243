from __future__ import annotations

import numpy as np
import pytest

from oneflow_dist.evaluation.bootstrap import Measure, wilson
from tests.messages import names, refused


@pytest.mark.parametrize(
    ("right", "number", "expected"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0)), (81, 263, (0.2553, 0.3662))],
)
def test_the_interval_of_a_share_is_wilsons(right: int, number: int, expected: tuple[float, float]) -> None:
    assert wilson(right, number) == pytest.approx(expected, abs=2e-4)
    measure = Measure.mean_of([True] * right + [False] * (number - right))
    assert measure.interval() == wilson(right, number)
    assert measure.value == right / number


def test_nineteen_of_twenty_intervals_of_a_mean_have_the_truth_in_them() -> None:
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        low, high = Measure(rows=rng.exponential(size=(60, 1)), combine=lambda r: float(r.mean()), draws=300).interval()
        hits.append(low <= 1.0 <= high)
    assert 0.88 <= np.mean(hits) <= 0.99


def test_an_interval_is_the_same_each_time_and_another_with_another_seed() -> None:
    measure = Measure.mean_of(np.random.default_rng(1).normal(size=50))
    assert measure.interval() == measure.interval()
    assert measure.interval(seed=1) != measure.interval()


def test_what_belongs_to_one_item_is_drawn_together() -> None:
    """Ten items of a hundred pictures each, all right or all wrong, say no more than ten items."""
    pairs = [(100.0, 100.0)] * 5 + [(0.0, 100.0)] * 5
    low, high = Measure.ratio_of(pairs).interval()
    assert Measure.ratio_of(pairs).value == 0.5
    assert high - low > 0.4


def test_a_ratio_weighs_items_by_what_they_have() -> None:
    assert Measure.ratio_of([(1.0, 1.0), (0.0, 3.0)]).value == 0.25
    assert Measure.ratio_of([(1.0, 1.0), (0.0, 0.0)]).value == 1.0


def test_nothing_has_no_figure() -> None:
    assert names(refused(Measure.mean_of, []), "item")
    assert refused(Measure.ratio_of, [(0.0, 0.0)])
