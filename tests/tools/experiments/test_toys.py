from __future__ import annotations

import pytest

from tools.experiments.toys import VAR, distance, mean_length, noised


def test_noising_keeps_each_letter_with_its_chance() -> None:
    law = noised({"ab": 1.0}, 0.25)
    assert law == pytest.approx({"": 0.5625, "a": 0.1875, "b": 0.1875, "ab": 0.0625})
    assert mean_length(noised(VAR, 0.5)) == pytest.approx(0.5 * mean_length(VAR))


def test_the_distance_is_what_would_have_to_move() -> None:
    assert distance({"a": 0.7, "b": 0.3}, {"a": 0.5, "c": 0.5}) == pytest.approx(0.5)
    assert distance(VAR, VAR) == 0.0
