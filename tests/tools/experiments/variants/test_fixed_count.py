"""Variants that noise in another way: how many tokens are missing, and how far pieces are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from oneflow_dist.containers import Sample
from oneflow_dist.flow.process import Insertion
from tests.noising import noising
from tools.experiments.variants.fixed_count import draw_kept, num_missing

Make = Callable[..., Sample]
PLAIN = noising()


@pytest.mark.parametrize(("keep_prob", "missing"), [(0.0, 4), (0.1, 4), (0.3, 3), (0.5, 2), (0.874, 1), (0.876, 0)])
def test_as_many_tokens_are_missing_as_the_time_says(keep_prob: float, missing: int, make_sample: Make) -> None:
    sample, rng = make_sample([9, 1, 2, 3, 4]), np.random.default_rng(0)
    assert num_missing(4, keep_prob) == missing
    for _ in range(20):
        keep = draw_kept(sample, keep_prob, [np.zeros(0)], PLAIN, rng)
        assert keep[0]
        assert (~keep).sum() == missing


def test_every_choice_of_so_many_tokens_is_as_likely_as_another(make_sample: Make) -> None:
    sample, rng = make_sample([9, 1, 2, 3, 4]), np.random.default_rng(0)
    drawn = Counter(tuple(draw_kept(sample, 0.5, [np.zeros(0)], PLAIN, rng).tolist()) for _ in range(3000))
    assert len(drawn) == 6
    assert all(count == pytest.approx(500, abs=80) for count in drawn.values())


def test_pieces_and_prompts_are_not_counted(make_sample: Make) -> None:
    sample = make_sample([9, 8, 7, 1, None, 2, None], num_prompt=3)
    keep = draw_kept(sample, 0.5, [np.array([-0.1, 0.2])], PLAIN, np.random.default_rng(0))
    assert keep[:3].all()
    assert keep[3] != keep[5]
    assert keep[[4, 6]].tolist() == [False, True]


def test_bags_of_a_fixed_number_are_made_as_ever(replaced: Callable[[str], None], make_sample: Make) -> None:
    replaced("fixed_count")
    sample = make_sample([9, 1, 2, 3, 4, 5], is_interleaved=False)
    noisy = Insertion(noising=PLAIN).look_at(sample, np.random.default_rng(0), (0.6, 0.6))
    assert len(noisy.tokens) == 1 + 5 - 2
    assert noisy.bags.missing_count.sum() == pytest.approx(2.0)
