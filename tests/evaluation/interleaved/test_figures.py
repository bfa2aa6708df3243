from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from oneflow_dist.evaluation.interleaved.figures import chance, measure_ranks, rank_of, thumbnail
from tests.messages import naming
from tests.precompute.making import picture

CHOICES = [picture(seed, 40, 50) for seed in range(8)]


def test_the_own_figure_is_first() -> None:
    for place in range(8):
        assert rank_of(CHOICES[place], [CHOICES[place], *CHOICES[:place], *CHOICES[place + 1 :]]) == 1


def test_another_figure_puts_the_own_one_behind_it() -> None:
    assert rank_of(CHOICES[1], CHOICES) > 1
    assert rank_of(CHOICES[1], CHOICES[:2]) == 2


def test_brightness_contrast_and_size_do_not_matter() -> None:
    dim = ImageEnhance.Brightness(CHOICES[0]).enhance(0.6).resize((16, 16))
    assert rank_of(dim, CHOICES) == 1
    assert np.linalg.norm(thumbnail(CHOICES[0])) == pytest.approx(1.0)
    assert thumbnail(CHOICES[0]).mean() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_picture_is_as_far_from_all_and_comes_last(level: int) -> None:
    assert rank_of(Image.new("RGB", (32, 32), (level,) * 3), CHOICES) == 8


def test_a_figure_that_a_book_shows_twice_takes_no_place_from_itself() -> None:
    assert rank_of(CHOICES[0], [CHOICES[0], CHOICES[0], *CHOICES[1:]]) == 1


def test_ranks_are_counted() -> None:
    measures = measure_ranks([1, 2, 4, 1], 8)
    assert measures["recall_1"].value == 1 / 2
    assert measures["reciprocal_rank"].value == pytest.approx((1 + 1 / 2 + 1 / 4 + 1) / 4)


def test_a_blind_choice_has_the_mean_of_all_ranks() -> None:
    for number in (2, 8):
        measures = measure_ranks(range(1, number + 1), number)
        assert chance(number) == pytest.approx({name: measure.value for name, measure in measures.items()})


def test_one_figure_is_no_choice() -> None:
    with pytest.raises(ValueError, match=naming(1)):
        measure_ranks([1], 1)
