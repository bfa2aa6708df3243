from __future__ import annotations

import bisect
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.containers import Bags
from oneflow_dist.flow import alignments
from oneflow_dist.flow.alignments import averaged_bags

Text = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, keep, is_bound
seeds = st.integers(0, 2**32 - 1)


@st.composite
def texts(draw: st.DrawFn, max_length: int = 12) -> Text:
    """Of up to three letters, with anchors and absent pieces anywhere."""
    num_letters, num_tokens = draw(st.integers(1, 3)), draw(st.integers(1, max_length))
    flags = st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)
    letters = st.lists(st.integers(0, num_letters - 1), min_size=num_tokens, max_size=num_tokens)
    tokens, keep, is_bound = np.array(draw(letters)), np.array(draw(flags)), np.array(draw(flags))
    if draw(st.booleans()):
        is_bound[:] = False
    keep[0] = is_bound[0] = True
    return tokens, keep, is_bound


def random_text(num_tokens: int, num_letters: int, keep_prob: float, seed: int = 0) -> Text:
    """Only the first token is bound."""
    rng = np.random.default_rng(seed)
    keep = rng.random(num_tokens) < keep_prob
    keep[0] = True
    return rng.integers(0, num_letters, num_tokens), keep, np.arange(num_tokens) == 0


def all_alignments(text: Text) -> list[tuple[int, ...]]:
    """The places of the kept tokens, in each way that is possible."""
    tokens, keep, is_bound = text
    kept = np.flatnonzero(keep)
    ways = (np.array(way) for way in itertools.combinations(range(len(tokens)), len(kept)))
    free = ~is_bound[kept]
    return [
        tuple(way.tolist())
        for way in ways
        if (tokens[way] == tokens[kept]).all() and (way == kept)[~free].all() and not is_bound[way[free]].any()
    ]


def missing(text: Text, way: tuple[int, ...]) -> list[tuple[int, int]]:
    """Slot and place of each deleted token in one alignment, in reading order."""
    places = sorted(set(range(len(text[0]))) - set(way))
    return [(bisect.bisect(way, place) - 1, place) for place in places]


def bags_of(text: Text, way: tuple[int, ...]) -> Counter[tuple[int, int]]:
    """How often a slot misses a token in one alignment."""
    return Counter((slot, int(text[0][place])) for slot, place in missing(text, way))


def exactly(text: Text) -> Bags:
    """Without thinning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignments, "_thin", lambda weight, *_: (np.ones(len(weight), dtype=bool), weight))
        return averaged_bags(*text, np.random.default_rng(0))


def weights(bags: Bags) -> dict[tuple[int, int], float]:
    return dict(zip(zip(bags.slot.tolist(), bags.tokens.tolist(), strict=True), bags.weight.tolist(), strict=True))


CROWDED = random_text(300, 30, 0.1)  # its exact bags have more entries than it has tokens

# The posterior.


@given(texts())
def test_bags_are_the_mean_over_all_alignments(text: Text) -> None:
    ways = all_alignments(text)
    total: Counter[tuple[int, int]] = Counter()
    count, filled = np.zeros((2, text[1].sum()))
    for way in ways:
        total.update(bags_of(text, way))
        gaps = np.diff([*way, len(text[0])]) - 1
        count += gaps
        filled += gaps > 0
    bags = exactly(text)
    assert weights(bags) == pytest.approx({entry: num / len(ways) for entry, num in total.items()}, abs=1e-6)
    np.testing.assert_allclose(bags.missing_count, count / len(ways), atol=1e-6)
    np.testing.assert_allclose(bags.filled_prob, filled / len(ways), atol=1e-6)


@given(texts(), st.data())
def test_any_drawn_alignment_of_the_same_kept_tokens_gives_the_same_bags(text: Text, data: st.DataObject) -> None:
    tokens, keep, is_bound = text
    other = np.zeros_like(keep)
    other[list(data.draw(st.sampled_from(all_alignments(text))))] = True
    here, there = (averaged_bags(tokens, drawn, is_bound, np.random.default_rng(0)) for drawn in (keep, other))
    for name in Bags.__slots__:
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


@given(texts())
def test_entries_are_sorted_by_slot_then_by_the_first_place_of_their_token_in_it(text: Text) -> None:
    possible = sorted({entry for way in all_alignments(text) for entry in missing(text, way)})
    bags = exactly(text)
    met = dict.fromkeys((slot, int(text[0][place])) for slot, place in possible)
    assert list(zip(bags.slot.tolist(), bags.tokens.tolist(), strict=True)) == list(met)


@given(texts(max_length=60))
def test_expected_sizes_are_sums_of_weights_and_with_the_kept_tokens_make_the_text(text: Text) -> None:
    bags = exactly(text)
    sums = np.bincount(bags.slot, bags.weight, len(bags.missing_count))
    np.testing.assert_allclose(sums, bags.missing_count, atol=1e-5)
    assert bags.missing_count.sum() + text[1].sum() == pytest.approx(len(text[0]), abs=1e-5)
    assert (bags.filled_prob <= bags.missing_count + 1e-6).all()


def test_absent_pieces_lie_between_the_neighbours_that_are_possible() -> None:
    """A kept 1 may be the first or the second, so that the absent 9 is after it or before it."""
    tokens, keep, is_bound = np.array([0, 1, 9, 1, 9]), np.array([1, 1, 0, 0, 1]) > 0, np.array([1, 0, 1, 0, 1]) > 0
    bags = exactly((tokens, keep, is_bound))
    assert weights(bags) == {(0, 1): 0.5, (0, 9): 0.5, (1, 9): 0.5, (1, 1): 0.5}
    assert bags.filled_prob.tolist() == [0.5, 0.5, 0.0]


# One alignment only.


@given(st.lists(st.booleans(), max_size=30), seeds)
def test_a_text_of_one_alignment_has_exactly_the_bags_of_it_and_draws_nothing(flags: list[bool], seed: int) -> None:
    keep = np.array([True, *flags])
    rng, untouched = np.random.default_rng(seed), np.random.default_rng(seed)
    bags = averaged_bags(np.arange(len(keep))[::-1].copy(), keep, np.arange(len(keep)) == 0, rng)
    slot = keep.cumsum() - 1
    np.testing.assert_array_equal(bags.tokens, np.flatnonzero(~keep[::-1])[::-1])
    np.testing.assert_array_equal(bags.slot, slot[~keep])
    assert (bags.weight == 1.0).all()
    np.testing.assert_array_equal(bags.missing_count, np.bincount(slot) - 1)
    np.testing.assert_array_equal(bags.filled_prob, np.bincount(slot) > 1)
    assert rng.bit_generator.state == untouched.bit_generator.state


@given(texts())
def test_where_all_tokens_are_bound_bags_are_the_drawn_ones(text: Text) -> None:
    tokens, keep, is_bound = text
    bags = averaged_bags(tokens, keep, np.ones_like(is_bound), np.random.default_rng(0))
    assert weights(bags) == bags_of(text, tuple(np.flatnonzero(keep).tolist()))


def test_what_is_certain_is_exact_beside_what_is_not() -> None:
    """1 2 1 2 ... of which a part is kept, then letters that are there once."""
    doubtful, keep, _ = random_text(400, 2, 0.4)
    tokens = np.concatenate([[9], doubtful, np.arange(10, 20)])
    keep = np.concatenate([[True], keep, np.arange(10) % 3 == 0])
    bags = exactly((tokens, keep, np.arange(len(tokens)) == 0))
    assert bags.weight[bags.tokens >= 10].tolist() == [1.0] * 6
    assert bags.missing_count[-4:].tolist() == [2.0, 2.0, 2.0, 0.0]
    assert bags.filled_prob[-4:].tolist() == [1.0, 1.0, 1.0, 0.0]


# Thinning.


def test_thinned_weights_have_the_exact_ones_as_their_mean() -> None:
    num_draws = 4_000
    exact = weights(exactly(CROWDED))
    assert len(exact) > len(CROWDED[0])
    total: Counter[tuple[int, int]] = Counter()
    rng = np.random.default_rng(0)
    floors = set()
    for _ in range(num_draws):
        thinned = weights(averaged_bags(*CROWDED, rng))
        assert len(thinned) <= len(CROWDED[0])
        floors.add(min(thinned.values()))
        total.update(thinned)
    (floor,) = floors
    light = {entry for entry, weight in exact.items() if weight < floor}
    assert len(light) > 30
    for entry, weight in exact.items():
        error = (max(0.0, weight * (floor - weight)) / num_draws) ** 0.5
        assert total[entry] / num_draws == pytest.approx(weight, abs=5 * error + 1e-5), entry


@given(seeds)
def test_thinning_moves_no_slots_sum_by_more_than_its_floor(seed: int) -> None:
    """And leaves counts and chances as they are."""
    thinned, exact = averaged_bags(*CROWDED, np.random.default_rng(seed)), exactly(CROWDED)
    np.testing.assert_array_equal(thinned.missing_count, exact.missing_count)
    np.testing.assert_array_equal(thinned.filled_prob, exact.filled_prob)
    sums = np.bincount(thinned.slot, thinned.weight, len(exact.missing_count))
    np.testing.assert_allclose(sums, exact.missing_count, atol=thinned.weight.min() + 1e-5)


@given(texts(max_length=80), seeds)
def test_there_are_never_more_entries_than_tokens_in_the_text(text: Text, seed: int) -> None:
    assert len(averaged_bags(*text, np.random.default_rng(seed)).tokens) <= len(text[0])


def test_thousands_of_equal_tokens_have_the_bags_that_were_drawn() -> None:
    keep = np.arange(2_000) % 3 == 0
    bags = averaged_bags(np.zeros(2_000, dtype=np.int64), keep, np.arange(2_000) == 0, np.random.default_rng(0))
    assert (bags.weight == 1.0).all()
    assert bags.missing_count[:-1].tolist() == [2.0] * (keep.sum() - 1)


# Long texts.


@pytest.mark.parametrize("keep_prob", [0.01, 0.3, 0.5, 0.9])
def test_long_texts_of_two_letters_stay_finite(keep_prob: float) -> None:
    text = random_text(3_000, 2, keep_prob)
    bags = averaged_bags(*text, np.random.default_rng(0))
    assert np.isfinite(bags.weight).all()
    assert ((bags.filled_prob >= 0.0) & (bags.filled_prob <= 1.0)).all()
    assert bags.missing_count.sum() + text[1].sum() == pytest.approx(3_000, rel=1e-6)
    assert bags.weight.sum() == pytest.approx(3_000 - text[1].sum(), abs=1.0)


def test_among_equal_tokens_every_slot_expects_the_same() -> None:
    """More than 1e400 alignments. Any place but the first is a kept token's with probability 499 / 1499."""
    tokens, keep = np.zeros(1_500, dtype=np.int64), np.arange(1_500) < 500
    bags = exactly((tokens, keep, np.arange(1_500) == 0))
    np.testing.assert_allclose(bags.weight, 2.0, rtol=1e-6)
    np.testing.assert_allclose(bags.missing_count, 2.0, rtol=1e-6)
    np.testing.assert_allclose(bags.filled_prob, 1_000 / 1_499, rtol=1e-6)
