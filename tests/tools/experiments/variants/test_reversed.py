"""Variants that noise in another way: how many tokens are missing, and how far pieces are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from oneflow_dist.containers import Sample
from oneflow_dist.flow.process import Insertion
from tests.noising import noising
from tools.experiments.variants.reversed import draw_times

Make = Callable[..., Sample]
PLAIN = noising()


def test_pieces_are_ahead_of_their_text_and_even_in_what_is_left(make_sample: Make) -> None:
    sample, rng = make_sample([9, 1, None, 2], is_interleaved=False), np.random.default_rng(0)
    drawn = [draw_times(sample, PLAIN, rng) for _ in range(4000)]
    text_time, age = np.array([(time, ages[0][0]) for time, ages in drawn]).T
    assert (age >= text_time).all()
    assert (age < 1.0).all()
    for values in (text_time, (age - text_time) / (1.0 - text_time)):
        assert np.histogram(values, 4, (0.0, 1.0))[0] == pytest.approx([1000] * 4, abs=120)


def test_spans_are_those_of_the_text_time_and_of_the_way_that_is_left(make_sample: Make) -> None:
    sample, rng = make_sample([9, 1, None, 2], is_interleaved=False), np.random.default_rng(0)
    for _ in range(100):
        text_time, (age,) = draw_times(sample, PLAIN, rng, (0.25, 0.5), (0.5, 0.75))
        assert 0.25 <= text_time < 0.5
        assert 0.5 <= (age[0] - text_time) / (1.0 - text_time) < 0.75


@pytest.mark.parametrize(
    ("num_prompt", "is_interleaved"),
    [(1, True), (2, False), (4, False)],
    ids=["interleaved", "image given", "text given"],
)
def test_other_samples_have_their_times_as_ever(
    num_prompt: int, is_interleaved: bool, replaced: Callable[[str], None], make_sample: Make
) -> None:
    tokens = [9, 1, 2, 3, None] if num_prompt == 4 else [9, None, 1, 2]
    sample = make_sample(tokens, num_prompt=num_prompt, is_interleaved=is_interleaved)
    process = Insertion(noising=PLAIN)
    before = process.look_at(sample, np.random.default_rng(5))
    replaced("reversed")
    after = process.look_at(sample, np.random.default_rng(5))
    assert after.text_time == before.text_time
    np.testing.assert_array_equal(after.tokens, before.tokens)
    np.testing.assert_array_equal(after.pieces[0].pieces.time, before.pieces[0].pieces.time)
    np.testing.assert_array_equal(after.pieces[0].pieces.patches, before.pieces[0].pieces.patches)
