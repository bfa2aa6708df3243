from __future__ import annotations

import numpy as np
import pytest

from tools.experiments.estimates import Estimate, difference, estimate
from tools.experiments.reading import Figure

LOSS = Figure(title="loss", probe="any", spread=0.0)


def test_of_many_seeds_the_spread_is_their_own_and_of_few_that_of_all_points() -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(5.0, 0.3, 4000).tolist(), rng.normal(3.0, 0.1, 4000).tolist()
    many = estimate({"wide": wide, "narrow": narrow}, LOSS, 0)
    assert many["wide"].spread == pytest.approx(0.3, rel=0.03)
    assert many["narrow"].spread == pytest.approx(0.1, rel=0.03)
    few = estimate({"wide": wide[:2], "narrow": [3.0, 3.0]}, LOSS, 0)
    common = 0.5 * np.var(wide[:2], ddof=1)
    assert few["narrow"].spread == pytest.approx((4.0 / 5.0 * common) ** 0.5)


def test_one_more_seed_lies_in_the_range_as_often_as_it_is_said_to() -> None:
    rng, inside = np.random.default_rng(1), 0
    for _ in range(400):
        values = rng.normal(1.0, 0.2, (5, 4))
        found = estimate({str(n): own[:3].tolist() for n, own in enumerate(values)}, LOSS, 0)
        inside += sum(abs(own[3] - found[str(n)].mean) < found[str(n)].half_range for n, own in enumerate(values))
    assert 0.985 <= inside / 2000 <= 1.0


def test_the_interval_of_a_mean_holds_it_as_often_as_it_is_said_to() -> None:
    rng, inside = np.random.default_rng(2), 0
    for _ in range(400):
        found = estimate({str(n): rng.normal(1.0, 0.2, 3).tolist() for n in range(5)}, LOSS, 0)
        inside += sum(abs(own.mean - 1.0) < own.half_interval for own in found.values())
    assert 0.92 <= inside / 2000 <= 0.99


def test_a_share_is_never_surer_than_drawing_documents_and_nothing_than_rounding() -> None:
    share = Figure(title="share", probe="any", is_share=True, spread=0.0)
    assert estimate({"all": [1.0, 1.0]}, share, 100)["all"].spread == pytest.approx((101 * 1 / 102**2 / 100) ** 0.5)
    loss = Figure(title="loss", probe="any", spread=0.01)
    assert estimate({"all": [2.0, 2.0]}, loss, 0)["all"].spread == pytest.approx(0.02)


def test_differences_are_seen_contradicted_or_neither() -> None:
    values = {"a": [1.0, 1.1, 1.2], "b": [2.0, 2.1, 2.2], "c": [1.05, 1.15, 1.2]}
    found = estimate(values, LOSS, 0)
    assert difference(found["b"], found["a"]).verdict(0.0) == "seen"
    assert difference(found["a"], found["b"]).verdict(0.0) == "contradicted"
    assert difference(found["c"], found["a"]).verdict(0.0) == "not seen at this scale"
    assert difference(found["a"], found["b"]).verdict(-2.0) == "seen"
    assert difference(found["b"], Estimate.exact(1.0)).verdict(0.0) == "seen"
    assert difference(found["b"], found["a"]).value == pytest.approx(1.0)
