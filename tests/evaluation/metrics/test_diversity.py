from __future__ import annotations

import numpy as np
import pytest

from oneflow_dist.evaluation.metrics import diversity as module
from oneflow_dist.evaluation.metrics.diversity import (
    Nearest,
    compare_lengths,
    longest_runs,
    measure_copied,
    measure_distinct,
    nearest_pictures,
    nearest_texts,
)
from tests.messages import naming

FOX = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


def pictures(seed: int, number: int, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, width))


def random_texts(seed: int, number: int, words: int, length: int) -> list[list[str]]:
    drawn = np.random.default_rng(seed).integers(0, words, (number, length))
    return [[f"w{word}" for word in text] for text in drawn]


def longest_common(one: list[str], other: list[str]) -> int:
    """By trying all."""
    runs = [
        length
        for length in range(1, len(one) + 1)
        for start in range(len(one) - length + 1)
        if any(one[start : start + length] == other[at : at + length] for at in range(len(other)))
    ]
    return max(runs, default=0)


@pytest.mark.parametrize(("n", "expected"), [(1, 3 / 6), (2, 3 / 4), (3, 2 / 2)])
def test_distinct_counts_different_ngrams_over_all(n: int, expected: float) -> None:
    assert measure_distinct([["a", "b", "a"], ["b", "a", "c"]], n).value == pytest.approx(expected)


def test_texts_written_again_and_again_are_less_diverse_with_each() -> None:
    assert [measure_distinct([FOX] * times, 2).value for times in (1, 2, 4)] == pytest.approx([1.0, 0.5, 0.25])


def test_what_is_left_without_a_text_tells_how_far_distinct_may_be_trusted() -> None:
    few, many = (measure_distinct(random_texts(0, number, 300, 10), 1) for number in (20, 80))
    for measure in (few, many):
        low, high = measure.interval()
        assert low < measure.value < high
    fresh = np.std([measure_distinct(random_texts(seed, 20, 300, 10), 1).value for seed in range(1, 60)])
    assert few.rows.std() / np.sqrt(20) == pytest.approx(fresh, rel=0.5)


def test_a_single_text_is_as_diverse_as_it_is() -> None:
    measure = measure_distinct(["hello"], 1)  # letters
    assert measure.value == pytest.approx(0.8)
    assert measure.interval() == pytest.approx((0.8, 0.8))
    assert measure_distinct(["abc"], 1).interval() == (1.0, 1.0)


def test_texts_shorter_than_an_ngram_are_refused() -> None:
    with pytest.raises(ValueError, match=naming("texts", 2, 5)):
        measure_distinct([["a"], ["b", "c"]], 5)


def test_lengths_that_are_all_longer_by_three_are_three_apart() -> None:
    real = [1, 4, 4, 9, 30]
    found = compare_lengths([length + 3 for length in real], real)
    assert found.distance.value == pytest.approx(3.0)
    assert (found.made.value, found.real.value) == pytest.approx((12.6, 9.6))
    assert found.made_quantiles == pytest.approx({share: value + 3 for share, value in found.real_quantiles.items()})
    assert found.real_quantiles[0.5] == 4.0


def test_the_distance_of_lengths_is_wasserstein_of_unlike_numbers_of_items() -> None:
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(0)
    made, real = rng.integers(0, 40, 57).tolist(), rng.integers(5, 30, 31).tolist()
    assert compare_lengths(made, real).distance.value == pytest.approx(wasserstein_distance(made, real))


def test_equal_lengths_are_no_distance_apart_and_its_interval_is_as_wide_as_fresh_sets_differ() -> None:
    rng = np.random.default_rng(0)
    same = rng.integers(0, 20, 40).tolist()
    assert compare_lengths(same, same[::-1]).distance.interval() == (0.0, 0.0)
    real = rng.poisson(12, 400).tolist()
    measures = [compare_lengths(rng.poisson(15, 200).tolist(), real).distance for _ in range(50)]
    told = np.mean([measure.rows.std() / np.sqrt(200) for measure in measures])
    assert told == pytest.approx(np.std([measure.value for measure in measures]), rel=0.3)


@pytest.mark.parametrize("name", ["made", "real"])
def test_no_lengths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=naming(name)):
        compare_lengths(**{"made": [1], "real": [1], name: []})


def test_a_copied_picture_is_found_at_no_distance() -> None:
    train = 1e3 + pictures(0, 50)  # far from 0, where squares of products would be off
    made = np.stack([train[31], train[7] + 0.5])
    found = nearest_pictures(made, train)
    assert found.index.tolist() == [31, 7]
    assert found.distance[0] == 0.0
    assert found.distance[1] == pytest.approx(0.5 * np.sqrt(12))


@pytest.mark.parametrize("block", [1, 3, 7, 1024])
def test_blocks_of_any_size_find_the_same_neighbours(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    made, train = pictures(0, 10), pictures(1, 20).astype(np.float32)
    distances = np.linalg.norm(made[:, None] - train[None], axis=2)
    found = nearest_pictures(made, train)
    assert found.index.tolist() == distances.argmin(1).tolist()
    assert found.distance == pytest.approx(distances.min(1))


def test_without_training_pictures_there_is_no_nearest() -> None:
    with pytest.raises(ValueError, match=naming("train")):
        nearest_pictures(pictures(0, 2), pictures(1, 0))
    assert len(nearest_pictures(pictures(0, 0), pictures(1, 3)).index) == 0


def test_copies_are_told_from_new_pictures_by_held_out_ones() -> None:
    train, held_out, new = pictures(0, 300), pictures(1, 400), pictures(2, 400)
    yardstick = nearest_pictures(held_out, train)
    assert measure_copied(nearest_pictures(new, train), yardstick).value == pytest.approx(0.05, abs=0.03)
    half = np.concatenate([new[:200], train[:200] + 1e-3])
    copied = measure_copied(nearest_pictures(half, train), yardstick)
    assert copied.value == pytest.approx(0.525, abs=0.03)
    low, high = copied.interval()
    assert low < 0.5 < high + 0.05


def test_no_pictures_to_compare_are_refused() -> None:
    some, none = (nearest_pictures(pictures(0, number), pictures(1, 3)) for number in (2, 0))
    with pytest.raises(ValueError, match=naming("made")):
        measure_copied(none, some)
    with pytest.raises(ValueError, match=naming("held out")):
        measure_copied(some, none)
    equal = Nearest(index=some.index, distance=np.ones(2))
    assert measure_copied(equal, equal).value == 0.0  # as near is not nearer


def test_a_copied_text_is_found_whole_and_a_shuffled_one_by_its_words_only() -> None:
    shuffled = [FOX[at] for at in (8, 3, 1, 6, 4, 2, 7, 0, 5)]
    found = nearest_texts([FOX, shuffled], [["a"], FOX], n=3)
    assert found.whole.value == 0.5
    assert found.known.value == 0.5
    assert (found.longest.value, found.most) == ((9 + 1) / 2, 9)
    assert nearest_texts([shuffled], [FOX], n=1).known.value == 1.0


def test_ngrams_weigh_alike_in_long_and_short_texts() -> None:
    found = nearest_texts([["a", "b"], ["x"] * 10], [["a", "b"]], n=2)
    assert found.known.value == pytest.approx(1 / 10)
    assert found.whole.value == 0.5


def test_texts_that_share_nothing_are_new() -> None:
    found = nearest_texts([["a", "b"]], [["c", "d"], []], n=1)
    assert (found.known.value, found.whole.value, found.longest.value, found.most) == (0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize("words", [2, 3, 8])
def test_longest_runs_are_those_found_by_trying_all(words: int) -> None:
    made, train = random_texts(0, 6, words, 12), random_texts(1, 5, words, 15)
    assert longest_runs(made, train) == [max(longest_common(one, other) for other in train) for one in made]


def test_a_run_does_not_go_on_into_the_next_training_text() -> None:
    assert longest_runs([["a", "b", "c", "d"], []], [["a", "b"], ["c", "d"]]) == [2, 0]


def test_letters_are_words_of_a_str() -> None:
    assert longest_runs(["abracadabra"], ["xxcadabxx"]) == [5]


def test_made_texts_without_an_ngram_are_refused() -> None:
    with pytest.raises(ValueError, match=naming("made", 1, 4)):
        nearest_texts([["a", "b"]], [FOX], n=4)
