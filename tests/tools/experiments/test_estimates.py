from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tools.experiments.estimates import Estimate, difference, estimate, paired_difference
from tools.experiments.reading import Figure

LOSS = Figure(title="loss", probe="any", spread=0.0)


def test_of_many_seeds_the_spread_is_their_own_and_of_few_that_of_all_points() -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(5.0, 0.3, 4000).tolist(), rng.normal(3.0, 0.1, 4000).tolist()
    many = estimate({"wide": wide, "narrow": narrow}, LOSS, 0)
    assert many["wide"].spread == pytest.approx(0.3, rel=0.03)
    assert many["narrow"].spread == pytest.approx(0.1, rel=0.03)
    few = estimate({"wide": wide[:3], "narrow": [3.0, 3.0, 3.0]}, LOSS, 0)
    own = float(np.var(wide[:3], ddof=1))
    common = 0.5 * own / math.log(2.0)  # half way between none and that of the other; of two degrees of freedom
    assert few["narrow"].spread == pytest.approx((4.0 / 6.0 * common) ** 0.5)
    assert few["wide"].spread >= own**0.5


def test_one_point_that_is_wild_does_not_make_the_others_uncertain() -> None:
    calm = {str(n): [1.0 + 0.01 * n, 1.01 + 0.01 * n, 0.99 + 0.01 * n] for n in range(4)}
    both = estimate(calm | {"wild": [5.0, 9.0, 1.0]}, LOSS, 0)
    assert both["0"].spread < 0.02
    assert both["wild"].spread == pytest.approx(4.0)


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
    wild = estimate({"all": [0.1, 0.9, 0.2]}, share, 100)["all"]
    assert wild.half_range == pytest.approx(0.6), "a share is not above 1"
    loss = Figure(title="loss", probe="any", spread=0.01)
    assert estimate({"all": [2.0, 2.0]}, loss, 0)["all"].spread == pytest.approx(0.02)


def test_the_interval_of_a_share_ends_where_shares_do() -> None:
    number = Estimate(mean=0.9, spread=0.2, floor=0.0, seeds=2)
    assert number.interval == pytest.approx((0.9 - number.half_interval, 0.9 + number.half_interval))
    share = replace(number, least=0.0, most=1.0)
    assert share.interval == (number.interval[0], 1.0)
    assert replace(number, seeds=1).interval == (0.9, 0.9)


def test_differences_are_seen_contradicted_or_neither() -> None:
    values = {"a": [1.0, 1.1, 1.2], "b": [2.0, 2.1, 2.2], "c": [1.05, 1.15, 1.2]}
    found = estimate(values, LOSS, 0)
    assert difference(found["b"], found["a"]).verdict(0.0) == "seen"
    assert difference(found["a"], found["b"]).verdict(0.0) == "contradicted"
    assert difference(found["c"], found["a"]).verdict(0.0) == "not seen at this scale"
    assert difference(found["a"], found["b"]).verdict(-2.0) == "seen"
    assert difference(found["b"], Estimate.exact(1.0)).verdict(0.0) == "seen"
    assert difference(found["b"], found["a"]).value == pytest.approx(1.0)


def test_seeds_that_are_good_for_both_cancel_out() -> None:
    pairs = [(1.0 + luck, 0.9 + luck) for luck in (0.0, 0.5, 1.0)]
    found = paired_difference(pairs, common=0.0001, floor=0.0)
    assert found.value == pytest.approx(0.1)
    assert found.verdict(0.0) == "seen"
    assert paired_difference(pairs, common=0.0001, floor=0.2).verdict(0.0) == "not seen at this scale"


def test_the_interval_of_a_difference_holds_it_as_often_as_it_is_said_to() -> None:
    rng = np.random.default_rng(3)
    pairs = rng.normal(1.0, 0.2, (2000, 3, 2)) + rng.normal(0.0, 1.0, (2000, 3, 1))
    found = [paired_difference([(a, b) for a, b in own], common=2 * 0.2**2, floor=0.0) for own in pairs.tolist()]
    inside = np.mean([abs(own.value) < own.half for own in found])
    assert 0.94 <= inside <= 0.99
